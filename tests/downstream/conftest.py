"""Fixtures of the evaluation tests; what they are made with is in shapes_store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shapes_store import suite_values, write_run, write_store

from downstream.plan import final_cells
from downstream.setup import prepare
from downstream.suite import load_suite


@pytest.fixture(scope="session")
def labelled_store(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("labelled") / "shapes.zarr", 7)


@pytest.fixture(scope="session")
def split_file(tmp_path_factory) -> Path:
    names = [f"patient_{i:02d}" for i in range(7)]
    path = tmp_path_factory.mktemp("split") / "split.json"
    path.write_text(json.dumps({"pool": names[:3], "validation": names[3:4], "test": names[4:], "note": "kept"}))
    return path


@pytest.fixture
def run_folder(tmp_path) -> Path:
    return write_run(tmp_path / "runs" / "mae", seed=1)


@pytest.fixture
def cell_of(labelled_store, split_file, tmp_path):
    """cell_of(arm name, *runs, **suite changes) -> (context, first fine-tuning cell of the arm)."""

    def make(name: str, *runs: Path, **changes):
        suite = load_suite(suite_values(labelled_store, split_file, **changes))
        context, split, arms, _ = prepare(runs, suite, tmp_path / "out")
        choices = {(measure, arm.name): (("lr", 0.01),) for measure in suite.measures for arm in arms}
        cells = final_cells(context, split, arms, choices, ["finetune"])
        return context, next(c for c in cells if c.arm.name == name)

    return make
