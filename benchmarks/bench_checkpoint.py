"""What saving costs a step: steps after which a checkpoint is begun or still being written, beside those without.

    python benchmarks/bench_checkpoint.py [--size L] [--patch 64 64 64] [--steps 40] [--every 8] [--check]

Trains MAE through the loop on made-up CTs and takes the time from the end of one step to the end of the next. Groups:
the step that holds the copy, those during the write, all others. For comparison the same content is saved at once, as
a loop without a writer would. `--check` fails (exit 1) when the median step with a copy takes more than 1.25 times the
others.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from bench_loader import make_store
from bench_step import wait
from common import RESULTS, save

from ssl3d import checkpoint, config
from ssl3d.checkpoint_writer import CheckpointWriter
from ssl3d.tasks.mae import MAE
from ssl3d.train import train

WARM_UP = 4
MAX_RATIO = 1.25


class TimedMAE(MAE):
    """MAE that notes when each step ended."""

    ends: list[float] = []  # noqa: RUF012 - shared by the class on purpose: the loop makes the object

    def after_step(self, step: int, steps: int) -> None:
        """The time, once the device has done all it was given."""
        self.ends.append(wait())


class WatchedWriter(CheckpointWriter):
    """Notes when each write began and ended."""

    spans: list[list[float]] = []  # noqa: RUF012 - as above

    def _write(self, *arguments: Any) -> Path:
        self.spans.append([time.perf_counter(), 0.0])
        path = super()._write(*arguments)
        self.spans[-1][1] = time.perf_counter()
        return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="S")
    parser.add_argument("--patch", type=int, nargs=3, default=[48, 48, 48])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="exit 1 when the goal is missed")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary, "store.zarr")
        make_store(store, 4, (96, 128, 112))
        recipe = config.load({
            "run": {"dir": str(Path(temporary, "run")), "steps": WARM_UP + o.steps, "log_every": 0, "devices": 1,
                    "checkpoint_every": o.every, "preview_every": 0, "holdout_every": 0, "collapse_every": 0},
            "data": {"store": str(store), "batch_size": 2},
            "model": {"_target_": "ssl3d.models.resenc.ResEncUNet", "size": o.size},
            "task": {"_target_": f"{__name__}.TimedMAE", "patch_size": o.patch, "mask_block": 16},
            "optim": {"lr": 1e-3},
        })  # fmt: skip
        with mock.patch("ssl3d.loop.CheckpointWriter", WatchedWriter):
            run = train(recipe)
        content = checkpoint.open_run(run)
        megabytes = (run / "checkpoints" / "last.pt").stat().st_size / 1e6
        at_once = []
        for _ in range(3):
            began = time.perf_counter()
            checkpoint.save(Path(temporary, "other"), content)
            at_once.append(time.perf_counter() - began)
    groups: dict[str, list[float]] = {"with the copy": [], "during the write": [], "others": []}
    for step in range(WARM_UP, len(TimedMAE.ends)):
        began, ended = TimedMAE.ends[step - 1], TimedMAE.ends[step]
        writing = any(first < ended and began < last for first, last in WatchedWriter.spans)
        name = "with the copy" if step % o.every == 0 else "during the write" if writing else "others"
        groups[name].append(ended - began)
    plain = statistics.median(groups["others"])
    rows = [
        {"step": name, "n": len(times), "seconds": statistics.median(times),
         "of others": statistics.median(times) / plain, "longest of others": max(times) / plain}
        for name, times in groups.items() if times
    ]  # fmt: skip
    blocking = statistics.median(at_once)
    rows.append({"step": "if it waited for the disk", "n": len(at_once), "seconds": plain + blocking,
                 "of others": 1 + blocking / plain, "longest of others": 1 + max(at_once) / plain})  # fmt: skip
    ratio = statistics.median(groups["with the copy"]) / plain
    details = {"checkpoint_mb": megabytes, "of_others": ratio, "goal": MAX_RATIO, "met": ratio <= MAX_RATIO}
    title = f"Steps of ResEnc-{o.size} around a checkpoint of {megabytes:.0f} MB"
    save("bench_checkpoint", title, rows, details, o.out)
    return 1 if o.check and ratio > MAX_RATIO else 0


if __name__ == "__main__":
    sys.exit(main())
