"""What a step of ssl3d's loop costs beside a bare loop over the same network: masked autoencoding on a ResEnc U-Net.

    python benchmarks/bench_step.py [--device cuda] [--size L] [--store STORE.zarr] [--out DIR] [--quick] [--check]

What is judged is taken inside the loop's own steps: `outside` is the share of a step that is neither forward (the
task, its augmentation included), backward, clipping nor optimiser; other load on the machine slows both alike.
Beside it stand whole steps of four arms, interleaved in every round:
  bare             forward, backward, clipping and optimiser on batches already read and on the device: 15 lines
  loop             `ssl3d.train.train` on the same recipe: loader, copies, normalisation, schedule, logging, guards
  bare, augmented  as bare, with the recipe's augmentation in the task's forward: what augmentation costs
  loop, augmented  as loop, with it
Figures are wall seconds a step, medians over rounds, and ratios within a round; `overhead` is the share of the loop's
step that is not in the bare one, which on a busy machine says little. Start-up, checkpoints and pictures are left out.
On a GPU every part ends with a synchronisation while `outside` is taken (in rounds of their own).
`--check` fails (exit 1) when `outside` is 3 % or more of the step. The stated case is ResEnc-L on 2 crops of 64^3:
--size L --patch 64 --plain --steps 3. Without --store, a few CT-like volumes are made in a
temporary folder.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from bench_loader import make_store
from common import RESULTS, save, spread

from ssl3d import config
from ssl3d.data.loader import RegionLoader
from ssl3d.data.sampling import SamplingPlan
from ssl3d.data.store import open_store
from ssl3d.devices import lay_out
from ssl3d.regions import RegionBatch
from ssl3d.tasks.mae import MAE
from ssl3d.train import train

GOAL = 0.03
WARM_UP = 3
AUGMENT = {
    "_target_": "ssl3d.augment.Compose",
    "transforms": [
        {"_target_": "ssl3d.augment.SpatialTransform", "p_axis_scale": 0.0},
        {"_target_": "ssl3d.augment.GaussianNoise"},
        {"_target_": "ssl3d.augment.GaussianBlur"},
        {"_target_": "ssl3d.augment.Brightness"},
        {"_target_": "ssl3d.augment.Contrast"},
        {"_target_": "ssl3d.augment.LowResolution"},
        {"_target_": "ssl3d.augment.Gamma"},
    ],
}


def wait() -> float:
    """The time, once the device has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class TimedMAE(MAE):
    """MAE that notes when the warm-up and when the last step ended: the loop runs untouched."""

    began = ended = inside = 0.0

    def after_step(self, step: int, steps: int) -> None:
        """Both times include everything the loop did in between."""
        if step == WARM_UP - 1:
            type(self).began = wait()
            type(self).inside = 0.0
        elif step == steps - 1:
            type(self).ended = wait()


@contextmanager
def parts_timed() -> Iterator[None]:
    """Add up in TimedMAE.inside the seconds of forward, backward, clipping and optimiser, wherever they are called."""

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = wait()
            result = function(*args, **kwargs)
            TimedMAE.inside += wait() - began
            return result

        return call

    parts = ((TimedMAE, "forward"), (torch.autograd, "backward"), (torch.nn.utils, "clip_grad_norm_"))
    with mock.patch.object(torch.optim.SGD, "step", timed(torch.optim.SGD.step)):
        for owner, name in parts:
            patcher = mock.patch.object(owner, name, timed(getattr(owner, name)))
            patcher.start()
        try:
            yield
        finally:
            mock.patch.stopall()


def recipe(o: argparse.Namespace, store: Path, folder: Path, augmented: bool) -> config.Recipe:
    """The recipe all arms share."""
    return config.load(
        {
            "run": {
                "dir": str(folder), "steps": WARM_UP + o.steps, "devices": 1, "precision": o.precision,
                "compile": o.compile, "log_every": 10, "checkpoint_every": 0,
                "preview_every": 0, "holdout_every": 0, "collapse_every": 0,
            },
            "data": {"store": str(store), "batch_size": o.batch},
            "model": {"_target_": "ssl3d.models.resenc.ResEncUNet", "size": o.size},
            "task": {
                "_target_": f"{__name__}.TimedMAE", "patch_size": o.patch, "mask_block": o.block,
                "augment": AUGMENT if augmented else None,
            },
            "optim": {
                "name": "sgd", "lr": 1e-3, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5, "schedule": "poly",
                "clip_norm": 12.0,
            },
        }
    )  # fmt: skip


def batches(r: config.Recipe, task: MAE, device: torch.device, count: int) -> list[RegionBatch]:
    """Batches as the loop would read them, normalised and on the device before anything is timed."""
    plan = SamplingPlan([open_store(r.data.store)], task.region, seed=0)  # type: ignore[list-item, arg-type]
    loader = RegionLoader(plan, r.data.batch_size, workers=0)
    n = r.data.batch_size
    return [loader.read(range(i * n, (i + 1) * n)).to(device).normalised() for i in range(count)]


def bare(r: config.Recipe, device: torch.device, steps: int) -> float:
    """Seconds a step of the loop anyone would write by hand."""
    task = config.build_task(r, config.build_model(r)).to(device).train()
    lay_out(task, r, device)
    data = batches(r, task, device, 2)
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3, momentum=0.99, nesterov=True, weight_decay=3e-5)
    began = wait()
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            began = wait()
        with torch.autocast(device.type, torch.bfloat16, enabled=r.run.precision == "bf16-mixed"):
            loss = task(data[step % len(data)])["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 12.0)
        optimizer.step()
        optimizer.zero_grad()
    return (wait() - began) / steps


def loop(r: config.Recipe, steps: int) -> float:
    """Seconds a step of ssl3d's own loop."""
    train(r)
    return (TimedMAE.ended - TimedMAE.began) / steps


def outside(r: config.Recipe) -> float:
    """The share of the loop's steps that is neither forward, backward, clipping nor optimiser."""
    with parts_timed():
        train(r)
    return 1 - TimedMAE.inside / (TimedMAE.ended - TimedMAE.began)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--size", choices=["S", "L"], help="default: L on a GPU, S else")
    parser.add_argument("--patch", type=int, help="default: 128 on a GPU, 48 else")
    parser.add_argument("--batch", type=int, help="default: 2")
    parser.add_argument("--steps", type=int, help="timed steps a round; default: 40 on a GPU, 10 else")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="leave out the arms with augmentation")
    parser.add_argument("--compile", action="store_true", help="compile the backbone in all arms")
    parser.add_argument("--store", type=Path, help="a real store instead of made volumes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a few small steps: that it runs, not how fast")
    parser.add_argument("--check", action="store_true", help="exit 1 when the goal is missed")
    o = parser.parse_args()
    if o.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here")
    gpu = o.device != "cpu" and torch.cuda.is_available()
    if not gpu and torch.cuda.is_available():
        parser.error("--device cpu: hide the GPU from the loop with CUDA_VISIBLE_DEVICES= (it takes what there is)")
    o.device = "cuda" if gpu else "cpu"
    o.precision = "bf16-mixed" if gpu else "32-true"
    o.size = o.size or ("L" if gpu and not o.quick else "S")
    o.patch = o.patch or (24 if o.quick else 128 if gpu else 48)
    o.block = max(4, o.patch // 8)
    o.batch = o.batch or 2
    o.steps = o.steps or (4 if o.quick else 40 if gpu else 10)
    o.rounds = 1 if o.quick else o.rounds
    return o


def main() -> int:
    o = arguments()
    device = torch.device(o.device)
    times: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        store = o.store
        if store is None:
            store = Path(temporary, "store.zarr")
            make_store(store, 2, (64, 96, 96) if o.quick else (160, 256, 256))
        for i in range(o.rounds):
            for augmented in (False,) if o.plain else (False, True):
                suffix = ", augmented" if augmented else ""
                r = recipe(o, store, Path(temporary, f"run{i}{suffix}"), augmented)
                times.setdefault(f"bare{suffix}", []).append(bare(r, device, o.steps))
                times.setdefault(f"loop{suffix}", []).append(loop(r, o.steps))
                timed = recipe(o, store, Path(temporary, f"timed{i}{suffix}"), augmented)
                shares.setdefault(f"loop{suffix}", []).append(outside(timed))
    return report(o, times, shares)


def report(o: argparse.Namespace, times: dict[str, list[float]], shares: dict[str, list[float]]) -> int:
    """Write JSON and the table; the exit code."""
    overhead = {
        name: statistics.median(1 - b / a for a, b in zip(values, times[name.replace("loop", "bare")]))
        for name, values in times.items()
    }
    rows: list[dict[str, Any]] = []
    for name, values in times.items():
        of_bare = statistics.median(a / b for a, b in zip(values, times["bare"]))
        rows.append({"arm": name, "ms a step": 1e3 * statistics.median(values), "of bare": of_bare})
        rows[-1]["overhead"] = f"{100 * overhead[name]:.1f} %" if name in shares else ""
        rows[-1]["outside"] = f"{100 * statistics.median(shares[name]):.2f} %" if name in shares else ""
    met = statistics.median(shares["loop"]) < GOAL
    settings = {key: getattr(o, key) for key in ("device", "size", "patch", "batch", "steps", "rounds", "precision")}
    details = {
        **settings,
        "compile": o.compile,
        "seconds_a_step": {name: spread(values) for name, values in times.items()},
        "overhead": {name: value for name, value in overhead.items() if name.startswith("loop")},
        "outside": {name: spread(values) for name, values in shares.items()},
        "goals": {"outside": GOAL, "met": met},
    }
    title = f"A step of masked autoencoding: ResEnc-{o.size}, {o.batch} x {o.patch}^3, {o.precision}, {o.device}"
    save("bench_step", title, rows, details, o.out)
    return 1 if o.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
