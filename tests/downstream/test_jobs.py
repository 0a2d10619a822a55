"""Processes: the same results, the first error, and the threads they are given."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from downstream.jobs import Pool, count_workers, limited_threads


def square(folder: Path, number: int) -> None:
    if number == 13:
        raise ValueError("thirteen is refused")
    (folder / str(number)).write_text(f"{number**2} {torch.get_num_threads()}")


def test_worker_counts():
    assert count_workers(4, 1, 100) == 4 and count_workers(4, 1, 2) == 2 and count_workers(1, 8, 0) == 1
    assert count_workers("auto", 1, 100) >= 1


def test_threads_are_limited_and_put_back():
    before = torch.get_num_threads()
    with limited_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_one_worker_runs_here(tmp_path):
    with Pool(square, tmp_path, 1, 1) as pool:
        assert list(pool.run([3, 4])) == [3, 4]
        assert (tmp_path / "4").read_text() == "16 1"
        with pytest.raises(ValueError, match="thirteen"):
            list(pool.run([5, 13, 6]))
    assert not (tmp_path / "6").exists()


@pytest.mark.slow
def test_processes_run_everything_and_pass_errors_on(tmp_path):
    with Pool(square, tmp_path, 2, 1) as pool:
        assert sorted(pool.run([1, 2, 3])) == [1, 2, 3]
        assert {p.read_text() for p in tmp_path.iterdir()} == {"1 1", "4 1", "9 1"}
        with pytest.raises(ValueError, match="thirteen"):
            list(pool.run([13]))


def kill_itself(shared: None, job: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_is_told_in_a_sentence():
    with Pool(kill_itself, None, 2, 1) as pool, pytest.raises(ValueError, match="a worker was killed by the system"):
        list(pool.run([1, 2]))
