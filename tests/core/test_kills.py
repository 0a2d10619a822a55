"""kill -9 at random moments, in a step, a save, the loader, a probe: the run ends with the bits of one never killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from omegaconf import OmegaConf

from ssl3d import checkpoint
from ssl3d.log import read_metrics

# A step is short; a checkpoint after every second, a look at the run after every third.
RUN = ["run.log_every=1", "run.checkpoint_every=2", "run.collapse_every=3", "run.preview_every=3",
       "run.holdout_every=3", "data.holdout=0.2", "data.batch_size=4", "data.workers=1"]  # fmt: skip


def start(file, run, ranks):
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "ssl3d", "train", str(file), f"run.dir={run}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def without_time(run):
    lines = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def steps_done(run) -> int:
    lines = read_metrics(run / "metrics.jsonl")
    return lines[-1]["step"] if lines else 0


def kill_series(tiny, tmp_path, ranks, kills, steps, seed, longest):
    recipe = tiny(f"run.steps={steps}", *RUN)
    file, whole, broken = tmp_path / "recipe.yaml", tmp_path / "whole", tmp_path / "broken"
    OmegaConf.save(OmegaConf.create(recipe.to_dict()), file)
    process = start(file, whole, ranks)
    assert process.wait() == 0, process.stderr.read()
    rng, killed = random.Random(seed), 0
    while killed < kills:
        before, process = steps_done(broken), start(file, broken, ranks)
        while process.poll() is None and steps_done(broken) <= max(0, before - 2):  # it is training again
            time.sleep(0.005)
        time.sleep(rng.uniform(0, longest))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        said = process.stderr.read()
        assert process.returncode == -signal.SIGKILL, f"{killed} kills, {steps_done(broken)} steps: {said}"
    process = start(file, broken, ranks)
    assert process.wait() == 0, process.stderr.read()
    one, two = checkpoint.open_run(whole), checkpoint.open_run(broken)
    assert one["step"] == two["step"] == steps
    assert all(torch.equal(one["model"][k], two["model"][k]) for k in one["model"])
    assert without_time(whole) == without_time(broken)
    assert {p.name for p in (broken / "checkpoints").iterdir()} <= {"last.pt", "previous.pt"}
    pictures = [sorted(p.name for p in (run / "previews").glob("*.png")) for run in (whole, broken)]
    assert pictures[0] == pictures[1]


@pytest.mark.slow
def test_killed_twice(tiny, tmp_path):
    kill_series(tiny, tmp_path, ranks=1, kills=2, steps=40, seed=0, longest=0.3)


@pytest.mark.acceptance
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_twenty_times(tiny, tmp_path, ranks):
    kill_series(tiny, tmp_path, ranks, kills=20, steps=800, seed=time.time_ns(), longest=1.5)
