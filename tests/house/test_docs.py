"""The documents hold: links and anchors, the site's contents, and every command, recipe and key that they name."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import yaml

from downstream.suite import SUITES, load_suite
from ssl3d import cli, config
from ssl3d.data.phantom import write_phantom
from ssl3d.export import TARGETS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")] + PAGES
RUN_ELSEWHERE = {  # their commands run as they stand in tests of their own
    "docs/export": "tests/export/test_export_docs.py",
    "docs/imports.md": "tests/weights/test_import_docs.py",
}
SHELL = ("", "bash", "sh", "console", "shell")
COMMANDS = ("ssl3d", "make", "python", "pip", "torchrun", "sbatch", "wandb", "dask", "docker", "export", ".ci/run")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?:    \S.*\n)+")
EXCUSE = re.compile(r"<!-- not run: (.+?) -->\s*$")
PLACEHOLDER = re.compile(r"^(?:[A-Z]{2,}[|\w.]*|\.\.\.)$")  # RUN|FILE, TARGET, DIR, ...


class Block(NamedTuple):
    """A block of code in a document; `excuse`: why it is not run, from the comment above it."""

    page: str
    line: int
    language: str
    code: str
    excuse: str | None

    @property
    def commands(self) -> list[str]:
        """Its lines, put together where they go on, without comments."""
        lines = re.sub(r"\\\n\s*", " ", self.code).splitlines()
        return [found for line in lines if (found := re.sub(r"(^|\s)#.*", "", line).strip())]

    @property
    def is_shell(self) -> bool:
        return self.language in SHELL and any(line.startswith(COMMANDS) for line in self.commands)

    @property
    def is_synopsis(self) -> bool:
        return all(any(map(PLACEHOLDER.match, command.split())) for command in self.commands)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks_of(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    inside = [found.span() for found in fences]
    indented = [
        found
        for found in INDENTED.finditer(text)
        if not any(begin <= found.start() < end for begin, end in inside)
        and any(line.strip().startswith(COMMANDS) for line in found[0].splitlines())
    ]
    for found in [*fences, *indented]:
        before = text[: found.start()]
        excuse = EXCUSE.search(before.rstrip())
        language, code = (found[2], found[3]) if found.re is FENCE else ("", found[0])
        yield Block(named(path), before.count("\n") + 1, language, code, excuse and excuse[1])


BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]
SHELLS = [block for block in BLOCKS if block.is_shell]


def place(block: Block) -> str:
    return f"{block.page}:{block.line}"


# Links


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(path: Path) -> set[str]:
    """The anchors of a page as GitHub makes them, and mkdocs.yml's slugify."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} (.+?) *$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        names.add(slug if slug not in found else f"{slug}-{found[slug]}")
        found[slug] = found.get(slug, 0) + 1
    return names


def test_the_globs_found_some() -> None:
    assert len(PAGES) > 30 and len(SHELLS) > 20


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_and_anchors_lead_somewhere(path: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", without_code(path.read_text(encoding="utf-8"))):
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (path.parent / link) if link else path
        assert target.exists(), f"{path.name}: {link}"
        if anchor:
            assert target.suffix == ".md" and anchor[1:] in anchors(target), f"{path.name}: {link}{anchor}"


# The site


class _Loader(yaml.SafeLoader):
    """mkdocs.yml names Python objects, which nothing here needs."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def nav_pages(node: object) -> list[str]:
    if isinstance(node, str):
        return [node]
    return [page for part in (node.values() if isinstance(node, dict) else node) for page in nav_pages(part)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_contents_of_the_site() -> None:
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)
    outside = hooks().OUTSIDE
    assert all((ROOT / source).is_file() for source in outside)
    inside = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES]
    assert sorted(nav_pages(site["nav"])) == sorted([*inside, *outside.values()])


def test_documents_that_pages_link_to_are_pages() -> None:
    """mkdocs fails on a Markdown file that the hooks put into the site while it is built."""
    linked = {
        (path.parent / target).resolve().relative_to(ROOT).as_posix()
        for path in DOCUMENTS
        for target in re.findall(r"\]\(([^)\s#:]+[.]md)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    }
    assert {place for place in linked if not place.startswith("docs/")} <= set(hooks().OUTSIDE)


def test_pages_are_read_as_on_github() -> None:
    """mkdocs' Markdown sees a list only behind a blank line, and nothing below a number without four spaces."""
    read = hooks().as_on_github
    assert read("Faults:\n- one\n- two\n") == "Faults:\n\n- one\n- two\n"
    assert read("1. One:\n\n   ```python\n   if x:\n       y\n   ```\n\ntext\n") == (
        "1. One:\n\n    ```python\n    if x:\n        y\n    ```\n\ntext\n"
    )
    assert read("```\ntext\n- no list\n```\n") == "```\ntext\n- no list\n```\n"


def hooks() -> ModuleType:
    found = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed: pip install '.[docs]', or make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    fetched = re.compile(
        r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//|<link[^>]*stylesheet"[^>]* href="(?:https?:)?//'
    )
    assert not [page for page in pages if fetched.search(page.read_text(encoding="utf-8"))]


# Commands


@pytest.mark.parametrize("block", SHELLS, ids=place)
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    if block.excuse:
        for test in re.findall(r"tests/[\w/.]+\.py", block.excuse):
            assert (ROOT / test).is_file(), test
        return
    elsewhere = [test for page, test in RUN_ELSEWHERE.items() if block.page.startswith(page)]
    assert elsewhere or block.is_synopsis or block.page in RUN_HERE, "run it in RUN_HERE, or say <!-- not run: why -->"
    assert all((ROOT / test).is_file() for test in elsewhere)
    if not elsewhere:
        assert all(command.startswith("ssl3d ") for command in block.commands)


@pytest.mark.parametrize("block", SHELLS, ids=place)
def test_the_commands_of_a_block_are_understood(block: Block) -> None:
    for command in block.commands:
        words = shlex.split(command)
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            words.pop(0)
        runs = "ssl3d" in words and words[0] not in ("wandb", "git") and words[1] != "build"
        if runs:  # also torchrun -m ssl3d, docker run IMAGE ssl3d
            understood(words[words.index("ssl3d") + 1 :])
        elif "recipes/cluster/slurm.sh" in words:
            given = words[words.index("recipes/cluster/slurm.sh") + 1 :]
            understood(given if given[0] == "sweep" else ["train", *given])
        elif words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), command
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None, command
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), command
        else:
            assert block.excuse, f"{command}: say above it why it is not run: <!-- not run: ... -->"


def understood(words: list[str]) -> None:
    """The real parser takes the words, and names of recipes, suites, targets and keys exist."""
    options = cli._parse(words)
    if PLACEHOLDER.match(next((w for w in words[1:] if not w.startswith("-")), "")) and options.verb != "evaluate":
        return
    if options.verb in ("train", "check"):
        shipped = options.recipe in config.names()
        assert shipped or options.recipe.endswith(".yaml"), f"there is no recipe '{options.recipe}'"
        config.load(options.recipe if shipped else "mae_resenc_s", options.overrides, unset=("data.store",))
    elif options.verb in ("recipes", "copy") and options.name:
        config.find(options.name)
    elif options.verb == "export":
        assert options.to in TARGETS
    elif options.verb == "sweep":
        assert PLACEHOLDER.match(options.file) or (ROOT / "recipes" / "sweeps" / f"{options.file}.yaml").is_file()
    elif options.verb == "evaluate" and not PLACEHOLDER.match(options.suite) and not options.suite.endswith(".yaml"):
        keys = [word for word in options.runs if "=" in word]
        assert config.find(options.suite, SUITES, "suite")
        load_suite(options.suite, ["store=my.zarr", "split=split.json", *keys])


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("python", "yaml", "json")], ids=place)
def test_other_code_can_be_read(block: Block) -> None:
    if block.language != "python":
        (json.loads if block.language == "json" else yaml.safe_load)(block.code)
        return
    lines = [line.strip() for line in block.code.splitlines() if line.strip().startswith(("from ", "import "))]
    ast.parse(re.sub(r"^" + " " * (len(block.code) - len(block.code.lstrip(" "))), "", block.code, flags=re.MULTILINE))
    exec("\n".join(lines), {})


def test_the_tables_of_recipes_name_every_key_and_its_default() -> None:
    """docs/recipes.md against the dataclasses: no key missing, none too many, simple defaults equal."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name, cls in config._SECTIONS.items():
        part = re.search(rf"^### [^\n]*`{name}`.*?(?=^###? )", text, re.MULTILINE | re.DOTALL)
        assert part is not None, name
        rows = [line.split("|")[1:3] for line in part[0].splitlines() if line.startswith("| `")]
        said = [key.removeprefix(f"{name}.") for row in rows for key in re.findall(r"`([\w.]+)`", row[0])]
        mine = [key for key in said if "." not in key] if name in ("run", "data", "optim") else said
        fields = {field.name: field for field in dataclasses.fields(cls)}
        own = set(mine) & set(fields) if name in ("probe", "guard", "wandb") else set(mine)
        assert own == set(fields), f"{name}: {set(fields) ^ own}"
        for keys, default in rows:
            key = re.findall(r"`(?:\w+\.)?(\w+)`", keys)
            if len(key) == 1 and key[0] in fields and fields[key[0]].default is not dataclasses.MISSING:
                shown = {None: "null", True: "true", False: "false"}.get(fields[key[0]].default, fields[key[0]].default)
                assert default.strip() == f"{shown:g}" if isinstance(shown, float) else str(shown), key[0]


# Run them

RUN_HERE = ("README.md", "docs/recipes.md", "docs/training.md", "docs/methods/synthesis.md")  # in this order
TINY = [
    "run.steps=1", "run.log_every=1", "run.preview_every=0", "run.collapse_every=0", "run.precision=32-true",
    "task.patch_size=[16,16,16]", "task.mask_block=4", "data.batch_size=2", "data.workers=0", "data.holdout=0",
]  # fmt: skip
SUITE = """
name: mine
store: labelled.zarr
split: split.json
metrics: [dice]
pictures: 1
workers: 1
measures:
  probe: {n_labelled: [1], seeds: 2, patch_size: [32, 32, 32], voxels_per_class: 50}
"""


@pytest.mark.slow
def test_the_blocks_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line in order, in one folder, on tiny data: trainings are cut to one small step of the small recipe."""
    monkeypatch.chdir(tmp_path)
    write_phantom(tmp_path / "labelled", patients=4, seed=1)
    scans = write_phantom(tmp_path / "made", patients=2, seed=2) / "imagesTr"
    scans.rename(tmp_path / "scans")
    cases = json.loads((tmp_path / "labelled" / "patients.json").read_text())
    patients = list(cases)
    split = {"pool": patients[:1], "validation": patients[1:2], "test": patients[2:]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    (tmp_path / "mine.yaml").write_text(SUITE)
    for number, block in enumerate(b for page in RUN_HERE for b in SHELLS if b.page == page and not b.excuse):
        if block.page == "docs/recipes.md":
            (tmp_path / "mine.yaml").unlink(missing_ok=True)  # there it is a recipe's copy
        for line, command in enumerate(block.commands):
            words = [word.replace("/data/", "") for word in shlex.split(command)[1:]]
            if words[0] == "train":
                words[1] = words[1].replace("_l", "_s")
                own = [] if "run.dir=" in command else [f"run.dir=runs/{number}_{line}"]
                words += [*TINY, *own]
            assert cli.main(words) == 0, f"{place(block)}: {command}\n{capsys.readouterr().err}"
    for made in ("my.html", "weights/checkpoint.pth", "eval/report.html", "runs/again/recipe.yaml"):
        assert (tmp_path / made).is_file(), made
