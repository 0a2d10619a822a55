# ssl3d: the commands of the house. `make` lists them. Needs python3 (3.11 to 3.13), git and make, nothing else.
# Another interpreter: make test PYTHON=python3.12 (remove .venv first if it was made with a different one).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ssl3d-installed
OUT ?= runs/quickstart

# Without bytecode on the disk every process compiles PyTorch anew, which more than doubles the time it takes to start.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help quickstart install test slow acceptance lint bench sizes wheel docs constraints clean

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 22

quickstart: $(STAMP) ## the whole pipeline on synthetic anatomy, minutes on a laptop CPU; OUT=DIR
	@$(BIN)/ssl3d quickstart --out $(OUT)

install: $(STAMP) ## make .venv with what constraints.txt pins

test: $(STAMP) ## unit tests
	@$(BIN)/python -m pytest -n auto --maxprocesses 8

slow: $(STAMP) ## pipelines and real data (SSL3D_DATA, default ../shared/data; skipped where it is missing)
	@$(BIN)/python -m pytest -m slow -n auto --maxprocesses 4 --dist loadscope --durations=20

acceptance: $(STAMP) ## kill series, the real nnU-Net, the quickstart on a real data set: long
	@$(BIN)/python -m pytest -m acceptance --timeout=3600 --durations=20

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(STAMP) ## loader, conversion, step and task benchmarks; JSON and tables in benchmarks/results
	@$(BIN)/python benchmarks/bench_loader.py
	@$(BIN)/python benchmarks/bench_convert.py
	@$(BIN)/python benchmarks/bench_step.py
	@$(BIN)/python benchmarks/bench_tasks.py

sizes: ## lines a package, the largest files, the longest functions
	@$(PYTHON) tests/house/sizes.py

wheel: $(STAMP) ## the wheel and the source distribution, into dist/; at a tag, only if it is the version's
	@tag=$$(git describe --exact-match --tags 2>/dev/null); version=$$($(BIN)/python -c 'import ssl3d; print(ssl3d.__version__)'); \
	if [ -n "$$tag" ] && [ "$$tag" != "v$$version" ]; then \
		echo "the tag $$tag is not that of version $$version: mend ssl3d/__init__.py or the tag"; exit 1; \
	fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	@rm -rf dist build && $(BIN)/python -m build --outdir dist .

docs: $(STAMP) ## the documentation as a site, into runs/site; installs mkdocs the first time
	@test -x $(BIN)/mkdocs || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site: runs/site/index.html"

constraints: ## pin every dependency again, for all pythons and platforms; UPGRADE=--upgrade takes newer ones
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)  # no install: the old pins may not fit setup.cfg any more
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --all-extras --no-header --no-annotate $(UPGRADE) \
		--output-file constraints.txt setup.cfg

clean: ## remove the environment; runs/ stays
	rm -rf $(VENV)

# uv installs several times faster than pip (and compiles to bytecode when asked) but reads none of pip's configuration
# (mirrors, certificates): where it cannot be had or cannot reach an index, pip does the same from the same pins.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 to 3.13, or name one with PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "ssl3d needs Python 3.11 to 3.13 and %s is %s: name another one with PYTHON=python3.12" % (sys.executable, sys.version.split()[0]))'
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "installing into $(VENV) (PyTorch is large: a few minutes the first time)"
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check uv \
		&& UV_SYSTEM_CERTS=1 $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
			-c constraints.txt -e '.[test]'; \
	then :; else \
		echo "uv could not install: using pip"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'; \
	fi
	@touch $@
