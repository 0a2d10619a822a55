"""Under SLURM: a task a rank, one pre-emption for all of them, the exit code that the job script puts back by."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ssl3d import checkpoint
from ssl3d.config import RECIPES
from ssl3d.log import read_metrics
from ssl3d.signals import EXIT_CODE, SIGNALS

SCRIPT = RECIPES / "cluster" / "slurm.sh"


def tasks(file, *overrides):
    """What srun starts: two tasks on one node."""
    job = {"SLURM_JOB_ID": str(20_000 + os.getpid() % 10_000), "SLURM_JOB_NAME": "ssl3d", "SLURM_NTASKS": "2",
           "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost",
           "SLURM_NODELIST": "localhost", "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, "-m", "ssl3d", "train", str(file), "run.devices=2", *overrides]
    return [
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip


@pytest.mark.slow
def test_tasks_of_a_job_train_together_save_on_sigusr1_and_go_on(tiny, tmp_path):
    recipe = tiny("run.steps=4000", "run.log_every=1", "run.checkpoint_every=0", "data.batch_size=4")
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    OmegaConf.save(OmegaConf.create(recipe.to_dict()), file)
    for start in (3, 8):
        both = tasks(file)
        while not (lines := read_metrics(run / "metrics.jsonl")) or lines[-1]["step"] < start:
            assert all(task.poll() is None for task in both), [task.communicate()[1] for task in both]
            time.sleep(0.01)
        for task in both:
            task.send_signal(signal.SIGUSR1)
        said = [task.communicate(timeout=60)[1] for task in both]
        assert [task.returncode for task in both] == [EXIT_CODE, EXIT_CODE], said
        step = checkpoint.open_run(run)["step"]
        assert step >= start and f"stopped by SIGUSR1 after step {step} of 4000 and saved" in said[0]
        assert "stopped by" not in said[1], "once a job, not once a rank"
        assert read_metrics(run / "metrics.jsonl")[-1]["step"] == step


def fake(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("verb", ["train", "sweep"])
@pytest.mark.parametrize("code", [0, 1, EXIT_CODE])
def test_the_job_script_requeues_what_was_preempted_and_nothing_else(tmp_path, code, verb):
    fake(tmp_path, "srun", f'echo "srun $*" >> {tmp_path}/log; exit {code}')
    fake(tmp_path, "scontrol", f'echo "scontrol $*" >> {tmp_path}/log')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    words = ["sweep"] * (verb == "sweep") + ["mae_resenc_l", "data.store=a b.zarr"]
    done = subprocess.run([SCRIPT, *words], env=environment, capture_output=True)
    assert done.returncode == code
    said = (tmp_path / "log").read_text().splitlines()
    assert said[0] == f"srun --kill-on-bad-exit=0 ssl3d {verb} mae_resenc_l data.store=a b.zarr"
    assert said[1:] == (["scontrol requeue 7"] if code == EXIT_CODE else [])
    assert subprocess.run([SCRIPT], env=environment, capture_output=True).returncode == 2


def test_the_job_script_is_valid_and_asks_for_the_signals_that_are_handled():
    text = SCRIPT.read_text()
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    (name,) = re.findall(r"--signal=(\w+)@", text)
    assert getattr(signal, f"SIG{name}") in SIGNALS
    assert "--requeue" in text
