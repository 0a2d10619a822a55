"""Golden runs: the first losses of every small recipe are those of the files in tests/golden."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssl3d.testing import golden

FOLDER = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return golden.write_store(tmp_path_factory.mktemp("golden"))


def test_a_version_of_torch_that_has_files_has_one_of_every_family():
    versions = {path.name.split(".torch")[1] for path in FOLDER.glob("*.torch*.txt")}
    assert versions and golden.families()
    for version in versions:
        found = {path.name.split(".torch")[0] for path in FOLDER.glob(f"*.torch{version}")}
        assert found == set(golden.families()), f"torch{version}: python -m ssl3d.testing.golden tests/golden"


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.families())
def test_the_losses_are_those_of_the_golden_file(name, store, tmp_path):
    file = golden.golden_file(FOLDER, name)
    if not file.exists():
        pytest.skip(f"no {file.name} for torch {torch.__version__}: python -m ssl3d.testing.golden tests/golden")
    expected = [float(line) for line in file.read_text().split()]
    assert len(expected) == golden.STEPS
    assert golden.losses(name, store, tmp_path / "run") == pytest.approx(expected, rel=golden.RTOL)
