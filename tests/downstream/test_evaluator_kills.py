"""Evaluations that are killed, and evaluations on a dask cluster: the same results.csv."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from shapes_store import suite_values, write_run, write_store

import downstream
from downstream.jobs import Pool
from downstream.results import read_results

START = "import sys, downstream; downstream.evaluate([sys.argv[1]], sys.argv[2], sys.argv[3])"


def small(root: Path) -> tuple[Path, Path]:
    """(run, suite file): two measures, a search, 28 cells."""
    store = write_store(root / "shapes.zarr", 6)
    names = [f"patient_{i:02d}" for i in range(6)]
    split = root / "split.json"
    split.write_text(json.dumps({"pool": names[:3], "validation": names[3:4], "test": names[4:]}))
    values = suite_values(store, split, pictures=0, metrics=["dice"])
    values["measures"]["finetune"]["augment"] = None
    suite = root / "suite.yaml"
    OmegaConf.save(OmegaConf.create(values), suite)
    return write_run(root / "run", 1), suite


def killed_after(run: Path, suite: Path, out: Path, cells: int) -> int:
    """Start the evaluation, kill -9 it when `cells` more are finished; how many there are then."""
    before = len(list((out / "cells").glob("*.csv")))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", START, str(run), str(suite), str(out)], env=env)
    while process.poll() is None and len(list((out / "cells").glob("*.csv"))) < before + cells:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(list((out / "cells").glob("*.csv")))


@pytest.mark.acceptance
@pytest.mark.timeout(1200)
def test_an_evaluation_killed_five_times_ends_the_same(tmp_path):
    run, suite = small(tmp_path)
    downstream.evaluate([run], suite, tmp_path / "whole")
    counts = [0]
    for _ in range(5):
        counts.append(killed_after(run, suite, tmp_path / "killed", 3))
    assert all(later >= earlier + 3 for earlier, later in itertools.pairwise(counts)), (
        counts
    )  # nothing finished is lost
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed" / "cells").glob("*.csv")}
    downstream.evaluate([run], suite, tmp_path / "killed")
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in kept.items())
    assert (tmp_path / "killed" / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
    assert not list((tmp_path / "killed" / "cells").glob(".*")) and not (tmp_path / "killed" / "work").exists()


def note(folder: Path, number: int) -> None:
    if number == 13:
        raise ValueError("thirteen is refused")
    (folder / str(number)).write_text(threading.current_thread().name)


def cluster():
    """A scheduler with one worker, a thread of this process: what a scheduler does, without the processes."""
    from distributed import LocalCluster

    return LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)


@pytest.mark.slow
def test_jobs_run_on_a_dask_scheduler(tmp_path):
    with cluster() as started, Pool(note, tmp_path, 1, 1, started.scheduler_address) as pool:
        assert sorted(pool.run([1, 2, 3])) == [1, 2, 3]
        assert threading.main_thread().name not in {p.read_text() for p in tmp_path.iterdir()}
        with pytest.raises(ValueError, match="thirteen"):
            list(pool.run([13]))


@pytest.mark.acceptance
def test_an_evaluation_on_a_dask_scheduler_gives_the_same_table(tmp_path):
    run, suite = small(tmp_path)
    downstream.evaluate([run], suite, tmp_path / "here")
    with cluster() as started:
        downstream.evaluate([run], suite, tmp_path / "there", [f"scheduler={started.scheduler_address}"])
    assert (tmp_path / "there" / "results.csv").read_bytes() == (tmp_path / "here" / "results.csv").read_bytes()
    assert read_results(tmp_path / "there")["arm"].nunique() == 2
