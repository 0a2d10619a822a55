"""What the layout of a run costs: compilation, channels last, recomputation, DDP and FSDP on one device.

    python benchmarks/bench_layout.py [--store STORE.zarr] [--only 128] [--seconds 540] [--out DIR] [--quick]

Every arm is `ssl3d.train.train` on a shipped recipe without augmentation, in a process of its own, in bfloat16 where
there is a GPU: ResEnc-L at 128^3 and 160^3 and Primus-M at 160^3 rebuild masked images, two regions a step. Each
figure is from the run's own last line of metrics, over --steps steps after as many (compilation is in those). `mfu` is
the backbone's counted operations of the GPU's data-sheet peak; a CPU has none. `of first` compares with the network's
first arm, which is run once more, for a few steps, under torch's profiler: the ten operations that take most of the
device's own time. Arms that --seconds leaves no room for are named.
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

import torch
from common import RESULTS, save
from torch.profiler import ProfilerActivity, profile

from ssl3d import config
from ssl3d.log import read_metrics
from ssl3d.train import train

EAGER = "run.compile=false"
# The most telling first: a time limit cuts the end off.
ARMS: dict[str, tuple[str, int, list[str]]] = {
    "resenc_l 128, eager": ("mae_resenc_l", 128, [EAGER]),
    "resenc_l 128, compiled": ("mae_resenc_l", 128, ["run.compile=true"]),
    "resenc_l 128, channels last": ("mae_resenc_l", 128, [EAGER, "run.channels_last=true"]),
    "resenc_l 128, compiled, channels last": ("mae_resenc_l", 128, ["run.compile=true", "run.channels_last=true"]),
    "resenc_l 128, recomputed": ("mae_resenc_l", 128, [EAGER, "run.recompute=true"]),
    "primus_m 160, eager": ("mae_primus_m", 160, [EAGER]),
    "primus_m 160, compiled": ("mae_primus_m", 160, ["run.compile=true"]),
    "resenc_l 160, eager": ("mae_resenc_l", 160, [EAGER]),
    "resenc_l 160, compiled": ("mae_resenc_l", 160, ["run.compile=true"]),
    "resenc_l 128, ddp on one device": ("mae_resenc_l", 128, [EAGER]),
    "resenc_l 128, fsdp on one device": ("mae_resenc_l", 128, [EAGER, "run.strategy=fsdp"]),
    "resenc_l 128, recomputed, compiled": ("mae_resenc_l", 128, ["run.compile=true", "run.recompute=true"]),
    "resenc_l 160, recomputed": ("mae_resenc_l", 160, [EAGER, "run.recompute=true"]),
    "primus_m 160, recomputed": ("mae_primus_m", 160, [EAGER, "run.recompute=true"]),
}
TINY = {"mae_resenc_l": "mae_resenc_s", "mae_primus_m": "mae_primus_s"}  # for --quick
PROFILED = 3  # steps, twice
NOTHING = {"time/step": 0.0, "time/peak_gib": 0.0, "time/data_share": 0.0}


def recipe(o: argparse.Namespace, arm: str, folder: str, steps: int) -> config.Recipe:
    """The recipe of an arm: `steps` that warm up, and as many that count."""
    name, side, overrides = ARMS[arm]
    patch = 32 if o.quick else side
    return config.load(
        TINY[name] if o.quick else name,
        [
            f"run.dir={folder}", f"run.steps={2 * steps}", f"run.log_every={steps}", "run.devices=1",
            "run.precision=" + ("bf16-mixed" if torch.cuda.is_available() else "32-true"),
            "run.checkpoint_every=0", "run.preview_every=0", "run.holdout_every=0", "run.collapse_every=0",
            f"data.store={o.store}", "data.batch_size=2", "data.holdout=0",
            f"task.patch_size=[{patch},{patch},{patch}]", "task.augment=null", *overrides,
        ],
    )  # fmt: skip


def child(o: argparse.Namespace) -> int:
    """Run one arm and leave its last line of metrics, or its profile, in --result."""
    with tempfile.TemporaryDirectory() as folder:
        if not o.profile:
            run = train(recipe(o, o.arm, folder, o.steps))
            found: Any = read_metrics(run / "metrics.jsonl")[-1]
        else:
            train(recipe(o, o.arm, f"{folder}/warm", 1))  # kernels are chosen, memory is asked for
            gpu = torch.cuda.is_available()
            with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
                train(recipe(o, o.arm, f"{folder}/profiled", PROFILED))
            found = top_ten(profiler, gpu)
    o.result.write_text(json.dumps(found))
    return 0


def top_ten(profiler: profile, gpu: bool) -> list[dict[str, Any]]:
    """The operations that take most of the device's own time, milliseconds a step and share of all."""
    events = profiler.key_averages()
    times = {e.key: (e.self_device_time_total if gpu else e.self_cpu_time_total) / 1e3 for e in events}
    total = sum(times.values())
    names = sorted(times, key=lambda name: -times[name])[:10]
    return [
        {"operation": n[:80], "ms a step": times[n] / (2 * PROFILED), "share": f"{100 * times[n] / total:.1f} %"}
        for n in names
    ]


def launch(o: argparse.Namespace, arm: str, profiled: bool, limit: float) -> Any:
    """What an arm's process leaves, or a sentence why it left nothing."""
    alone = "on one device" in arm
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"] if alone else []
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [
            sys.executable, *launcher, __file__, "--arm", arm, "--result", str(result), "--store", str(o.store),
            "--steps", str(o.steps), *(["--quick"] if o.quick else []), *(["--profile"] if profiled else []),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return f"not done in {limit:.0f} s"
        if not result.exists():
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
        return json.loads(result.read_text())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a store of volumes of at least 160^3 voxels; made if not given")
    parser.add_argument("--only", help="arms whose name contains this")
    parser.add_argument("--steps", type=int, help="steps that count, after as many that do not; default: 20")
    parser.add_argument("--seconds", type=float, default=540.0, help="start no arm later than this")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="tiny networks, two steps: that it runs, not how fast")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    o = parser.parse_args()
    o.steps = o.steps or (2 if o.quick else 20)
    return o


def main() -> int:
    o = arguments()
    if o.arm is not None:
        return child(o)
    began, rows, failed = time.monotonic(), list[dict[str, Any]](), dict[str, str]()
    profiles: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        if o.store is None:
            from bench_loader import make_store  # not above: an arm's process need not import what makes stores

            o.store = Path(temporary, "store.zarr")
            make_store(o.store, 2, (48, 64, 56) if o.quick else (176, 200, 200))
        arms = [arm for arm in ARMS if o.only is None or o.only in arm]
        seconds: dict[str, float] = {}
        for arm in arms:
            network = arm.split(",")[0]
            for profiled in (False, True) if network not in seconds else (False,):
                left = o.seconds - (time.monotonic() - began)
                found = launch(o, arm, profiled, left) if left > 0 else "no time left"
                if isinstance(found, str):
                    failed[arm + (", profile" if profiled else "")] = found
                elif profiled:
                    profiles[arm] = found
                else:
                    first = seconds.setdefault(network, found["time/step"])
                    rows.append(row(arm, found, first))
    for arm, reason in failed.items():
        rows.append(dict.fromkeys(row(arm, NOTHING, 1.0), "") | {"arm": f"{arm}: {reason}"})
    details = {"steps": o.steps, "left_out": failed, "quick": o.quick}
    more = {f"{arm}: the ten longest operations": rows for arm, rows in profiles.items()}
    save("bench_layout", "A step of masked autoencoding, two regions, by layout", rows, details, o.out, more)
    return 1 if any(reason != "no time left" for reason in failed.values()) else 0


def row(arm: str, line: dict[str, Any], first: float) -> dict[str, Any]:
    """A line of the table."""
    return {
        "arm": arm,
        "ms a step": 1e3 * line["time/step"],
        "of first": line["time/step"] / first,
        "mfu": f"{100 * line['time/mfu']:.1f} %" if "time/mfu" in line else "",
        "peak GiB": line["time/peak_gib"],
        "waiting for data": f"{100 * line['time/data_share']:.1f} %",
    }


if __name__ == "__main__":
    sys.exit(main())
