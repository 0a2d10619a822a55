"""Fixtures of the evaluation tests; what they are made with is in shapes_store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shapes_store import write_run, write_store


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
