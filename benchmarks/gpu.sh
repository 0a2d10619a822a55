#!/usr/bin/env bash
# GPU tests and benchmarks in one command, under 10 minutes, on a bare Linux machine: one CUDA GPU, Python 3.12 with
# torch (seen with 2.11), pandas, pyarrow, scipy, scikit-learn, matplotlib, rich, timm and pytest; no package index.
#
#   benchmarks/gpu.sh --prepare    here, with an index: puts the wheels that machine lacks and a small store into .gpu/
#   benchmarks/gpu.sh              there, in the checkout with .gpu/: tests, step, loader and task benchmarks, JSON in $OUT
#   benchmarks/gpu.sh --layout     there, ten minutes more: ResEnc-L and Primus-M compiled or not, channels last, recomputed,
#                                  DDP and FSDP on one device; MFU, memory, the ten longest operations
#   benchmarks/gpu.sh --dry-run    all these steps at tiny size on the CPU, in the present environment (CI)
#
# Environment: PYTHON (default: .venv/bin/python if it is there, else python3), OUT (default: benchmarks/results).
# Exit code: 0 only if every step passed; each runs whatever the others did. $OUT/gpu.json sums them up.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
ROOT=$PWD
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
CARRY=.gpu
MOST_MIB=60
# What the training path imports and such a machine lacks. Versions are those of constraints.txt for Python 3.12.
PACKAGES=(zarr numcodecs donfig google-crc32c msgspec omegaconf antlr4-python3-runtime lightning-fabric
    lightning-utilities dynamic-network-architectures)
PLATFORMS=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64)

fail() { echo "gpu.sh: $*" >&2; exit 1; }

pinned() { # NAME -> NAME==VERSION as constraints.txt has it for Python 3.12
    "$PYTHON" - "$1" <<'PY'
import sys
from packaging.requirements import Requirement
name = sys.argv[1]
target = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux", "platform_system": "Linux",
          "platform_machine": "x86_64", "implementation_name": "cpython", "platform_python_implementation": "CPython"}
for line in open("constraints.txt"):
    text = line.split("#")[0].strip()
    if text and (r := Requirement(text)).name == name and (r.marker is None or r.marker.evaluate(target)):
        print(f"{r.name}{r.specifier}")
        break
else:
    sys.exit(f"constraints.txt pins no {name} for Python 3.12")
PY
}

prepare() {
    rm -rf "$CARRY"
    mkdir -p "$CARRY/wheels"
    local pip=("$PYTHON" -m pip --disable-pip-version-check -q) platforms=() package requirement
    "${pip[@]}" --version >/dev/null 2>&1 || fail "$PYTHON has no pip: $PYTHON -m ensurepip"
    for package in "${PLATFORMS[@]}"; do platforms+=(--platform "$package"); done
    for package in "${PACKAGES[@]}"; do
        requirement=$(pinned "$package") || fail "no pinned version of $package"
        # Some publish no wheel: pure Python, so that one built here runs there.
        "${pip[@]}" download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
            -d "$CARRY/wheels" "$requirement" 2>/dev/null ||
            "${pip[@]}" wheel --no-deps -w "$CARRY/wheels" "$requirement" || fail "cannot get $requirement"
        echo "$requirement"
    done
    ls "$CARRY"/wheels/*.whl | grep -v -e '-none-any' -e 'cp312' && fail "not for Python 3.12: see above"
    PYTHONPATH="$ROOT:$ROOT/benchmarks" "$PYTHON" - "$CARRY/store.zarr" <<'PY' || fail "cannot make the store"
import sys
from pathlib import Path
from bench_loader import make_store
make_store(Path(sys.argv[1]), 2, (224, 288, 288))
PY
    local mib
    mib=$(du -sm "$CARRY" | cut -f1)
    [ "$mib" -le "$MOST_MIB" ] || fail "$CARRY is $mib MiB, more than $MOST_MIB"
    echo "$CARRY: $(ls "$CARRY/wheels" | wc -l) wheels and a store, $mib MiB"
}

STEPS=()
step() { # NAME SECONDS COMMAND...: run it, note how it ended
    local name=$1 limit=$2 began=$SECONDS code
    shift 2
    echo "== $name: $*"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
    code=${PIPESTATUS[0]}
    STEPS+=("\"$name\": {\"exit\": $code, \"seconds\": $((SECONDS - began))}")
    [ "$code" -eq 0 ] || { echo "== $name failed (exit $code)"; FAILED=1; }
}

begin() {
    FAILED=0
    mkdir -p "$OUT" || fail "cannot write $OUT"
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
}

layout() { # SECONDS
    step layout "$1" "$PYTHON" benchmarks/bench_layout.py "${LAYOUT_OPTIONS[@]}" --out "$OUT"
}

run() { # SECONDS for each of tests, step, loader, tasks
    local tests=$1 bench=$2 loader=$3 tasks=$4
    step tests "$tests" "$PYTHON" -m pytest tests/gpu -m gpu -rs -p no:cacheprovider --junitxml="$OUT/tests.xml"
    step step "$bench" "$PYTHON" benchmarks/bench_step.py "${STEP_OPTIONS[@]}" --out "$OUT"
    step loader "$loader" "$PYTHON" benchmarks/bench_loader.py "${LOADER_OPTIONS[@]}" --out "$OUT"
    step tasks "$tasks" "$PYTHON" benchmarks/bench_tasks.py "${TASKS_OPTIONS[@]}" --out "$OUT"
}

finish() {
    local IFS=,
    printf '{"dry_run": %s, "steps": {%s}}\n' "$DRY" "${STEPS[*]}" >"$OUT/gpu.json"
    cat "$OUT/gpu.json"
    exit "$FAILED"
}

case "${1-}" in
--prepare)
    prepare
    ;;
--dry-run)
    OUT=${OUT:-benchmarks/results/dry-run}
    DRY=true
    export SSL3D_TEST_DEVICE=cpu CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
    STEP_OPTIONS=(--quick)
    LOADER_OPTIONS=(--quick --size 32 64 32)
    TASKS_OPTIONS=(--quick)
    LAYOUT_OPTIONS=(--quick --only "160, eager" --seconds 280)
    begin
    run 300 300 300 300
    layout 300
    finish
    ;;
"" | --layout)
    OUT=${OUT:-benchmarks/results}
    DRY=false
    [ -d "$CARRY/wheels" ] || fail "there is no $CARRY/: run benchmarks/gpu.sh --prepare where a package index is"
    SITE=$(mktemp -d)
    trap 'rm -rf "$SITE"' EXIT
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
        --target "$SITE" "$CARRY"/wheels/*.whl || fail "the wheels do not install on $("$PYTHON" --version)"
    export PYTHONPATH="$SITE"
    "$PYTHON" -c 'import torch; assert torch.cuda.is_available(); print(torch.__version__, torch.cuda.get_device_name())' ||
        fail "torch sees no CUDA device here"
    STEP_OPTIONS=(--device cuda --store "$CARRY/store.zarr")
    LOADER_OPTIONS=(--store "$CARRY/store.zarr")
    TASKS_OPTIONS=(--device cuda --rounds 1 --steps 3)  # recipes whose libraries are not there are left out and named
    LAYOUT_OPTIONS=(--store "$CARRY/store.zarr" --seconds 520)
    begin
    if [ "${1-}" = --layout ]; then layout 570; else run 180 180 100 130; fi
    finish
    ;;
*)
    fail "unknown option $1: --prepare, --layout, --dry-run or none"
    ;;
esac
