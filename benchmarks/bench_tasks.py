"""What each pretext task costs beside a plain forward and backward pass of its backbone, in time and in memory.

    python benchmarks/bench_tasks.py [--device cuda] [--only vit] [--batch 2] [--out DIR] [--quick]

Each shipped recipe is an arm, found by walking them: those of CPU size (run.precision: auto) on a CPU, the others on a
GPU. Its task steps forward and backward on made regions; `plain` sends as many inputs of its size through the
same backbone once, and through its decoder where the task trains that. Both without an optimiser, and without
augmentation unless the method is made of it (views). Figures are ratios within a round, medians over rounds: a ratio of
2 is what two views cost at least. Beside them, ViT by ViT, SimMIM over MAE.

Memory on a CPU is the peak resident size of a child process above what it had before its first step; on a GPU torch's
peak above what was allocated. Weights are in neither, gradients and activations are. An arm whose library is missing
(MONAI, lightly) is left out and named.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, save
from torch import Tensor

from ssl3d import config, schema
from ssl3d.tasks.task import Objective
from ssl3d.testing.toys import make_batch

WARM_UP = 1
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
QUICK = ("mae_resenc_s", "mae_vit_s", "simmim_vit_s")


@dataclass
class Cost:
    """Seconds a step and bytes at the peak."""

    seconds: float
    peak: float


def load(name: str) -> config.Recipe:
    """A shipped recipe without the augmentation that its task can do without."""
    recipe = config.load(name, ["data.store=x"])
    known = schema.parameters(schema.import_object(recipe.task[schema.TARGET], "task"))
    if "augment" in known and known["augment"][1] is None:
        recipe.task["augment"] = None
    return recipe


def build(name: str, device: torch.device) -> Objective:
    """The recipe's task in training mode, with initial weights."""
    recipe = load(name)
    torch.manual_seed(0)
    return config.build_task(recipe, config.build_model(recipe)).to(device).train()


def work(name: str, plain: bool, o: argparse.Namespace) -> Callable[[], Tensor]:
    """The forward pass of one arm: -> what backward starts from."""
    device = torch.device(o.device)
    task = build(name, device)
    batch, channels = max(o.batch, task.region.group), task.backbone.in_channels
    if not plain:
        regions = make_batch(task.region.size, batch, channels).to(device)
        return lambda: task(regions)["loss"]
    backbone = task.backbone.requires_grad_(True)
    image = make_batch(task.input_size, batch, channels).image.to(device)

    def forward() -> Tensor:
        features = backbone.encode(image)
        return (backbone.decode(features)[0] if task.needs_decoder else backbone.pool(features)).float().sum()

    return forward


def resident() -> int:
    """Bytes of this process in memory now."""
    import psutil  # a machine with a GPU need not have it

    return psutil.Process().memory_info().rss


def measure(name: str, plain: bool, o: argparse.Namespace) -> Cost:
    """Steps of one arm in this process."""
    forward = work(name, plain, o)
    gpu = o.device == "cuda"

    def wait() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    before = torch.cuda.memory_allocated() if gpu else resident()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    began = 0.0
    for step in range(WARM_UP + o.steps):
        if step == WARM_UP:
            began = wait()
        with torch.autocast(o.device, torch.bfloat16, enabled=gpu):
            loss = forward()
        loss.backward()
    seconds = (wait() - began) / o.steps
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
    return Cost(seconds, peak - before)


def _child(end: Connection, name: str, plain: bool, o: argparse.Namespace) -> None:
    end.send(measure(name, plain, o))


def apart(name: str, plain: bool, o: argparse.Namespace) -> Cost:
    """As `measure`; on a CPU in a child of its own, whose memory no other arm has grown."""
    if o.device == "cuda":
        cost = measure(name, plain, o)
        torch.cuda.empty_cache()
        return cost
    forked = multiprocessing.get_context("fork")  # with all imports made: a child has nothing to load
    here, there = forked.Pipe(duplex=False)
    child = forked.Process(target=_child, args=(there, name, plain, o))
    child.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise RuntimeError(f"{name}: the measuring process ended with exit code {child.exitcode}") from None
    finally:
        child.join()


def compare(name: str, o: argparse.Namespace) -> dict[str, Any]:
    """Task and plain pass of one recipe in turns: a row."""
    with torch.device("meta"):
        backbone = config.build_model(load(name))
    task = config.build_task(load(name), backbone)
    rounds = [(apart(name, True, o), apart(name, False, o)) for _ in range(o.rounds)]
    times = [ours.seconds / plain.seconds for plain, ours in rounds]
    peaks = [ours.peak / plain.peak for plain, ours in rounds]
    return {
        "recipe": name,
        "input": "x".join(map(str, task.input_size)),
        "passes": f"{task.passes:.3g}" + (f" + {task.teacher_passes:.3g} teacher" if task.teacher_passes else ""),
        "plain, ms": 1e3 * statistics.median(plain.seconds for plain, _ in rounds),
        "time of plain": statistics.median(times),
        "plain, MiB": statistics.median(plain.peak for plain, _ in rounds) / 2**20,
        "memory of plain": statistics.median(peaks),
        "ms": 1e3 * statistics.median(ours.seconds for _, ours in rounds),
        "MiB": statistics.median(ours.peak for _, ours in rounds) / 2**20,
    }


def versus(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """SimMIM over MAE on the same ViT and input: what encoding the visible tokens alone saves."""
    found = {row["recipe"]: row for row in rows}
    pairs = [(n, n.replace("mae_", "simmim_", 1)) for n in found if n.startswith("mae_vit")]
    return [
        {
            "MAE": mae, "SimMIM": simmim, "time, SimMIM over MAE": found[simmim]["ms"] / found[mae]["ms"],
            "memory, SimMIM over MAE": found[simmim]["MiB"] / found[mae]["MiB"],
        }
        for mae, simmim in pairs
        if simmim in found
    ]  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--only", help="recipes whose name contains this")
    parser.add_argument("--batch", type=int, default=2, help="inputs a step (a task's groups may need more)")
    parser.add_argument("--steps", type=int, help="timed steps a round; default: 10 on a GPU, 3 else")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="three recipes, one step each: that it runs, not how fast")
    o = parser.parse_args()
    if o.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here")
    if o.device == "auto":
        o.device = "cuda" if torch.cuda.is_available() else "cpu"
    o.steps = o.steps or (10 if o.device == "cuda" else 3)
    if o.quick:
        o.steps = o.rounds = 1
    if o.device == "cpu":
        torch.set_num_threads(1)  # a forked child cannot use the threads of its parent
    return o


def main() -> int:
    o = arguments()
    shipped = {n: config.read(n)["run"]["precision"] for n in config.names() if "/" not in n}
    named = [n for n, precision in shipped.items() if (precision == "auto") == (o.device == "cpu")]
    named = [n for n in named if (o.only or "") in n] if not o.quick else list(QUICK)
    rows, left_out = [], []
    for name in named:
        try:
            rows.append(compare(name, o))
            print(f"{name}: {rows[-1]['time of plain']:.2f} of the time", flush=True)
        except ModuleNotFoundError as error:
            left_out.append(f"{name} (needs {error.name})")
    if left_out:
        print("left out:", ", ".join(left_out))
    settings = {key: getattr(o, key) for key in ("device", "batch", "steps", "rounds")}
    precision = "bfloat16" if o.device == "cuda" else "float32, one thread"
    title = f"Pretext tasks beside a plain pass of their backbone: batch {o.batch}, {precision}, {o.device}"
    more = versus(rows)
    save("bench_tasks", title, rows, {**settings, "left_out": left_out}, o.out, {"ViT": more} if more else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
