"""Twenty steps of the whole loop: two gloo ranks are one rank with the same batch, in float64 to 1e-9."""

from __future__ import annotations

import os
import subprocess
import sys

import every_task
import pytest
import torch

from ssl3d import checkpoint
from ssl3d.log import read_metrics
from ssl3d.testing.matrix import task_classes
from ssl3d.testing.small_store import write_small
from ssl3d.train import train


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path):
    """A masked task, one with a teacher and other ranks' volumes, one with other ranks' negatives."""
    assert_two_ranks_are_one(tmp_path, ["MAE", "VoCo", "LocalContrast"])


@pytest.mark.acceptance
def test_two_ranks_are_one_for_every_task(tmp_path):
    assert_two_ranks_are_one(tmp_path, [cls.__name__ for cls in task_classes()])


def assert_two_ranks_are_one(tmp_path, tasks):
    store = write_small(tmp_path / "store.zarr", shape=(36, 44, 40))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               every_task.__file__, str(store), str(tmp_path / "2"), *tasks]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as ranks:
        for task in tasks:
            train(every_task.recipe(task, store, tmp_path / "1"))
        said, _ = ranks.communicate()
    assert ranks.returncode == 0, said[-3000:]
    for task in tasks:
        one, two = (tmp_path / str(ranks) / task for ranks in (1, 2))
        lines, others = (read_metrics(run / "metrics.jsonl") for run in (one, two))
        assert len(lines) == len(others) == every_task.STEPS
        for a, b in zip(lines, others):
            for key in ("loss", "grad_norm"):
                assert b[key] == pytest.approx(a[key], rel=1e-9, abs=1e-9), f"{task}, step {a['step']}: {key}"
        a, b = (checkpoint.open_run(run) for run in (one, two))
        for part in ("model", "average"):
            for name, value in a[part].items():
                scale = max(1.0, float(value.abs().max())) if value.numel() else 1.0  # an unused centre is empty
                torch.testing.assert_close(b[part][name], value, rtol=0, atol=1e-9 * scale, msg=f"{task}, {name}")
