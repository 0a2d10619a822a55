"""Conversion on the workers of a dask scheduler that the test starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from converting import CHECKOUT, committed, descendants, digests, finish, nobody_left, scans, start, wait_until

from preprocessing import convert

__all__ = ["nobody_left"]
pytestmark = pytest.mark.slow

SCANS = 8


def _dask(*arguments, folder):
    environment = {
        **os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__DASHBOARD__LINK": "",
    }  # fmt: skip
    with (folder / f"{arguments[0]}-{time.monotonic_ns()}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *map(str, arguments)], env=environment, cwd=folder, stdout=log, stderr=log
        )


@pytest.fixture
def cluster(tmp_path):
    """(address, its two workers): a scheduler and two worker processes, in a folder of their own."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    file = folder / "scheduler.json"
    local = ("--host", "127.0.0.1")
    running = [_dask("scheduler", *local, "--port", 0, "--no-dashboard", "--scheduler-file", file, folder=folder)]
    assert wait_until(lambda: file.exists() and file.stat().st_size > 0)
    address = json.loads(file.read_text())["address"]
    for _ in range(2):
        running.append(
            _dask("worker", address, *local, "--nthreads", 1, "--no-nanny", "--no-dashboard", "--local-directory",
                  folder, folder=folder)
        )  # fmt: skip
    yield address, running[1:]
    for process in reversed(running):
        process.kill()
        process.wait()


def test_two_workers_of_a_scheduler_and_one_that_is_lost(cluster, tmp_path):
    address, workers = cluster
    source = scans(tmp_path / "in", SCANS)
    code, out, err = finish("in", "local", "--workers", 2, cwd=tmp_path)
    assert code == 0, err
    run = start("in", "remote", "--scheduler", address, cwd=tmp_path)  # relative paths; the workers are elsewhere
    assert wait_until(lambda: committed(tmp_path / "remote") >= 2 or run.poll() is not None)
    assert all(descendants(worker) for worker in workers)  # each has a child that reads and writes
    workers[0].kill()
    remote_out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert remote_out.splitlines()[-1] == out.splitlines()[-1] == f"converted {SCANS}, refused 1"
    assert digests(tmp_path / "remote") == digests(tmp_path / "local")
    assert source.is_dir()


def test_a_scheduler_that_is_not_there_is_named(tmp_path):
    source = scans(tmp_path / "in", 1, side=14)
    with pytest.raises(ValueError, match=r"--scheduler tcp://127.0.0.1:9 cannot be reached"):
        convert(source, tmp_path / "store", scheduler="tcp://127.0.0.1:9")
