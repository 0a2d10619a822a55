"""What a store of many volumes costs: the index made from its metadata, opening it, the first batch; and its memory.

    python benchmarks/bench_scale.py [--volumes 100000] [--store DIR] [--out DIR] [--check]

Every volume has metadata of its own and voxels that can be read (three models, linked). Each measurement is a process
of its own, so that its memory is that of nothing else; imports are not counted in its time. `--check` fails (exit 1)
when opening takes 2 s or more, or open and first batch together 5 s or more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, save

OPEN_SECONDS, BATCH_SECONDS = 2.0, 5.0
PATCH = (32, 32, 32)
BATCH = 8


def memory_mib(field: str) -> float:
    """A line of /proc/self/status in MiB; "VmHWM" is the most this process ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure(task: str, store: str) -> dict[str, float]:
    """Seconds and memory of one task, in this process: the imports done before it, and what it added to them."""
    from ssl3d.data.index import collect_rows, write_index
    from ssl3d.data.loader import RegionLoader
    from ssl3d.data.objects import open_objects
    from ssl3d.data.sampling import SamplingPlan
    from ssl3d.data.store import open_store
    from ssl3d.regions import RegionSpec

    before = memory_mib("VmRSS")
    start, cpu, found = time.perf_counter(), time.process_time(), {}
    if task == "index":
        objects = open_objects(store)
        table, statistics = collect_rows(objects)
        found["metadata_s"] = time.perf_counter() - start
        write_index(objects, table, statistics)
    else:
        opened = open_store(store)
        if task == "batch":
            with RegionLoader(SamplingPlan([opened], RegionSpec(PATCH), seed=0), BATCH, workers=1) as loader:
                next(iter(loader))
    found |= {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    return {**found, "mib": memory_mib("VmHWM") - before, "imports_mib": before}


def run(task: str, store: Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", task, "--store", str(store)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=100_000)
    parser.add_argument("--store", type=Path, help="where the store is made; one that is there is used")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="exit 1 when the goals are missed")
    parser.add_argument("--measure", choices=("index", "open", "batch"), help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.measure:
        print(json.dumps(measure(o.measure, str(o.store))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        store = o.store or Path(temporary, "many.zarr")
        if not store.exists():
            from ssl3d.testing.many import write_many

            write_many(store, o.volumes)
        found = {task: run(task, store) for task in ("index", "open", "batch")}
        index_mib = (store / "index.parquet").stat().st_size / 2**20
    return report(o, found, index_mib)


def report(o: argparse.Namespace, found: dict[str, dict[str, float]], index_mib: float) -> int:
    """Write JSON and the table; the exit code."""
    names = {
        "index": "make the index (metadata of every volume, thumbnails, statistics)",
        "open": "open the store",
        "batch": f"open, plan, first batch of {BATCH} x {'x'.join(map(str, PATCH))}",
    }
    rows: list[dict[str, Any]] = [
        {"task": names[task], "seconds": one["seconds"], "CPU, s": one["cpu_s"], "memory, MiB": one["mib"]}
        for task, one in found.items()
    ]
    met = found["open"]["seconds"] < OPEN_SECONDS and found["batch"]["seconds"] < BATCH_SECONDS
    details = {
        "volumes": o.volumes,
        "index_file_mib": index_mib,
        "measured": found,
        "goals": {"open_s": OPEN_SECONDS, "batch_s": BATCH_SECONDS, "met": met},
    }
    save("bench_scale", f"A store of {o.volumes:,} volumes (index.parquet: {index_mib:.0f} MiB)", rows, details, o.out)
    return 1 if o.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
