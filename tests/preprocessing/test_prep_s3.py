"""From raw files to a store behind s3://, to the first steps of a training on it, and what inspect says of it."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from converting import descendants, digests, finish, nobody_left, scans, start, wait_until

from preprocessing import inspect
from ssl3d.data.objects import open_objects
from ssl3d.data.store import open_store

__all__ = ["nobody_left"]

SCANS = 4
NETWORK = {
    "n_stages": 2, "features_per_stage": [4, 8], "n_blocks_per_stage": [1, 1], "n_conv_per_stage_decoder": [1],
    "kernel_sizes": [[3, 3, 3]] * 2, "strides": [[1, 1, 1], [2, 2, 2]],
}  # fmt: skip


@pytest.fixture
def source(tmp_path):
    return scans(tmp_path / "in", SCANS, side=30)


@pytest.mark.acceptance
def test_converted_to_s3_it_is_the_store_that_a_disk_holds(source, s3_bucket, tmp_path):
    url = f"{s3_bucket()}/folder/my.zarr"
    code, out, err = finish(source, tmp_path / "local", "--workers", 1)
    assert code == 0, err
    run = start(source, url, "--workers", 2)
    objects = open_objects(url)
    assert wait_until(lambda: len(objects.holding("volumes", "zarr.json")) >= 1 or run.poll() is not None)
    run.send_signal(signal.SIGSTOP)  # it holds the store as long as the second one takes to start
    code, _, err = finish(source, url, "--workers", 1)
    assert code == 1 and f"store {url} is being written by another ssl3d convert (process {run.pid} on" in err
    below = descendants(run)
    run.kill()
    run.communicate()
    for process in below:
        process.wait(30)
    code, remote_out, err = finish(source, url, "--workers", 2)  # its owner is dead: no need to wait
    assert code == 0, err
    assert remote_out.splitlines()[-1] == out.splitlines()[-1] == f"converted {SCANS}, refused 1"
    assert digests(url) == digests(tmp_path / "local")
    assert f"volumes: {SCANS}" in inspect(url) and "empty_file: 1" in inspect(url)
    here, there = open_store(tmp_path / "local"), open_store(url)
    for row in range(SCANS):
        box = ((2, 3, 1), (11, 20, 13))
        np.testing.assert_array_equal(here.read(row, *box), there.read(row, *box))


@pytest.mark.slow
def test_training_reads_s3(source, s3_bucket, tmp_path):
    from ssl3d.config import load
    from ssl3d.log import read_metrics
    from ssl3d.train import train

    url = f"{s3_bucket()}/my.zarr"
    assert finish(source, url, "--workers", 1)[0] == 0
    assert finish(source, tmp_path / "local", "--workers", 1)[0] == 0
    losses = {}
    for name, store in (("remote", url), ("local", str(tmp_path / "local"))):
        recipe = {
            "run": {"dir": str(tmp_path / name), "steps": 2, "precision": "32-true", "log_every": 1},
            "data": {"store": store, "batch_size": 2, "workers": 1, "few_slices": True},
            "model": {"_target_": "ssl3d.models.resenc.ResEncUNet", "arch_kwargs": NETWORK},
            "task": {"_target_": "ssl3d.tasks.mae.MAE", "patch_size": [8, 16, 12], "mask_block": 4},
            "optim": {"lr": 1e-2},
        }
        folder = train(load(recipe, []))
        losses[name] = [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert losses["remote"] == losses["local"] and len(losses["local"]) >= 2
