"""What computing visible voxels alone saves: forward and backward of the ResEnc encoder, against the dense encoder.

    python benchmarks/bench_sparse.py [--check] [--stages] [--device cuda] [--size L] [--patch 128] [--rounds 1]

The whole encoder, on the same image, with the same weights, arms interleaved in every round:
  dense    `backbone.encode`, as MAE runs it
  sparse   `ssl3d.models.sparse.encode_visible`, for mask blocks of 32 and 16 voxels and 75 % and 60 % hidden, each
           stage gathered (g) or put together (-) as its default says
Figures are seconds (CPU seconds of all threads, wall seconds on a GPU) and ratios within a round. `--check` fails
(exit 1) when blocks of the encoder's total stride, 75 % of them hidden, take more than 0.6 of the dense encoder.

`--stages` instead times every stage alone: dense; sparse with the image put together for every convolution; sparse on
gathered tiles. The break-even is the visible share at which gathered tiles take as long as the image put together, if
their time grows with the share; `ssl3d.models.sparse.BREAK_EVEN` states it by the voxels of a tile.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, save, spread
from torch import Tensor, nn

from ssl3d.memory import keep_freed_memory
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.sparse import choices, encode_visible, encoder_steps, run_stage, work_share
from ssl3d.models.sparse_layout import ActiveScales
from ssl3d.regions import Size3

GOAL = 0.6
RATIOS = (0.75, 0.6)


def wait(device: torch.device) -> float:
    """Seconds, once the device has done all it was given; on a CPU those this process computed, whatever else runs."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(forward: Callable[[], Sequence[Tensor]], module: nn.Module, o: argparse.Namespace) -> float:
    """Seconds of a forward and backward pass."""
    module.zero_grad(set_to_none=True)
    began = wait(o.device)
    with torch.autocast(o.device.type, torch.bfloat16, enabled=o.bf16):
        outputs = forward()
    sum(y.float().sum() for y in outputs).backward()  # type: ignore[union-attr]
    return wait(o.device) - began


def hidden_blocks(o: argparse.Namespace, block: int, ratio: float) -> Tensor:
    """(B,g,g,g) bool: round(ratio * blocks) of the blocks of each image."""
    n = o.patch // block
    order = torch.rand((o.batch, n**3), generator=torch.Generator().manual_seed(0)).argsort(1)
    return (order < round(ratio * n**3)).view(o.batch, n, n, n).to(o.device)


def cube(edge: int) -> Size3:
    return (edge, edge, edge)


def whole(o: argparse.Namespace, backbone: ResEncUNet) -> int:
    """Time the whole encoder; the exit code."""
    image = torch.randn((o.batch, 1, o.patch, o.patch, o.patch), device=o.device)
    arms: dict[str, Callable[[], Sequence[Tensor]]] = {"dense": lambda: backbone.encode(image)}
    rows: list[dict[str, Any]] = []
    for block in o.blocks:
        for ratio in RATIOS:
            hidden = hidden_blocks(o, block, ratio)
            scales = ActiveScales(hidden, cube(block), cube(o.patch))
            name = f"block {block}, {100 * ratio:.0f} % hidden"
            arms[name] = lambda h=hidden, b=block: encode_visible(backbone, image, h, cube(b)).rows
            gathered = "".join("g" if choice else "-" for choice in choices(backbone, scales))
            rows.append({"arm": name, "gathered": gathered, "multiply-adds": work_share(backbone, scales)})
    list(arms.values())[-1]()  # kernels are chosen on the first call
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(o.rounds):
        for name, forward in arms.items():
            times[name].append(seconds(forward, backbone, o))
    for row in rows:
        row["s"] = statistics.median(times[row["arm"]])
        row["of dense"] = statistics.median(a / b for a, b in zip(times[row["arm"]], times["dense"]))
    rows.append({"arm": "dense", "gathered": "", "multiply-adds": 1.0, "s": statistics.median(times["dense"])})
    rows[-1]["of dense"] = 1.0
    met = rows[0]["of dense"] <= GOAL
    details = {
        **settings(o),
        "seconds": {k: spread(v) for k, v in times.items()},
        "goals": {"of dense": GOAL, "met": met},
    }
    save("bench_sparse", f"Forward and backward of the encoder: {title(o)}", rows, details, o.out)
    return 1 if o.check and not met else 0


def stages(o: argparse.Namespace, backbone: ResEncUNet) -> None:
    """Time every stage alone, and where gathering begins to pay."""
    rows: list[dict[str, Any]] = []
    steps, strides = encoder_steps(backbone), [cube(1), *backbone.strides]
    for i, modules in enumerate(backbone.encoder_stages()):
        channels = backbone.in_channels if i == 0 else backbone.channels[i - 1]
        size = [o.patch // s for s in strides[i]]
        x = torch.randn((o.batch, channels, *size), device=o.device, requires_grad=i > 0)
        stage = nn.Sequential(*modules)

        def sparse(
            block: int, ratio: float, gathered: bool, i: int = i, x: Tensor = x
        ) -> tuple[Callable[[], Any], Any]:
            scales = ActiveScales(hidden_blocks(o, block, ratio), cube(block), cube(o.patch))
            given = scales.at(strides[i]).take(x).detach().requires_grad_(i > 0)
            return lambda: [run_stage(steps[i], given, scales, strides[i], gathered)], scales.at(strides[i + 1])

        dense = measured(lambda stage=stage, x=x: [stage(x)], stage, o)
        together = measured(sparse(o.blocks[0], RATIOS[0], False)[0], stage, o) / dense
        for block in o.blocks:
            row: dict[str, Any] = {"scale": i, "features": backbone.channels[i], "block": block}
            points = []
            for ratio in RATIOS:
                forward, active = sparse(block, ratio, True)
                points.append((active.share, measured(forward, stage, o) / dense))
                row |= {"tile": active.tile[0], f"share, {100 * ratio:.0f} %": active.share}
                row[f"gathered, {100 * ratio:.0f} %"] = points[-1][1]
            rows.append(
                row | {"together": together, "dense s": dense, "break-even share": break_even(points, together)}
            )
    save("bench_sparse_stages", f"A stage alone, of the dense stage: {title(o)}", rows, settings(o), o.out)


def measured(forward: Callable[[], Sequence[Tensor]], module: nn.Module, o: argparse.Namespace) -> float:
    """The least over rounds; what takes less than four seconds is warmed up and repeated at least four times."""
    first = seconds(forward, module, o)
    repeats = max(o.rounds, 4) if first < 4 else o.rounds - 1
    return min([seconds(forward, module, o) for _ in range(repeats)] or [first])


def break_even(points: Sequence[tuple[float, float]], together: float) -> float:
    """The share at which (share, time) of gathered tiles, growing in proportion, reach the time put together."""
    return min(1.0, statistics.mean(together * share / taken for share, taken in points))


def settings(o: argparse.Namespace) -> dict[str, Any]:
    return {
        "device": o.device.type, "size": o.size, "patch": o.patch, "batch": o.batch, "rounds": o.rounds,
        "bfloat16": o.bf16, "threads": torch.get_num_threads(),
    }  # fmt: skip


def title(o: argparse.Namespace) -> str:
    return f"ResEnc-{o.size}, {o.batch} x {o.patch}^3, {'bfloat16' if o.bf16 else 'float32'}, {o.device.type}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--size", choices=["S", "L"], default="L")
    parser.add_argument("--patch", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="default: 1, 10 on a GPU")
    parser.add_argument("--stages", action="store_true", help="every stage alone, for the break-even")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a small network: that it runs, not how fast")
    parser.add_argument("--check", action="store_true", help="exit 1 when the goal is missed")
    o = parser.parse_args()
    o.device = torch.device("cuda" if o.device != "cpu" and torch.cuda.is_available() else "cpu")
    o.bf16 = o.device.type == "cuda"
    o.rounds = o.rounds or (10 if o.bf16 else 1)
    if o.quick:
        o.size, o.patch, o.rounds = "S", 32, 1
    stride = 8 if o.size == "S" else 32
    o.blocks = (stride, stride // 2)
    if o.patch % stride or math.gcd(o.patch, stride) != stride or o.patch < 2 * stride:
        parser.error(f"--patch {o.patch}: a multiple of {stride}, at least {2 * stride}")
    return o


def main() -> int:
    o = arguments()
    if o.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    backbone = ResEncUNet(o.size).to(o.device).train()
    if o.stages:
        stages(o, backbone)
        return 0
    return whole(o, backbone)


if __name__ == "__main__":
    sys.exit(main())
