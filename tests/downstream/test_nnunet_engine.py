"""The real nnU-Net as a measure (acceptance), and what is refused without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from shapes_store import suite_values, write_run

import downstream
from downstream.nnunet_engine import NETWORKS, NnUNet, write_dataset
from downstream.plan import final_cells
from downstream.results import MEAN_FOREGROUND, read_results
from downstream.setup import prepare
from downstream.suite import load_suite
from ssl3d.data.format import LABELS
from ssl3d.schema import import_object

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "export"))
from small_nnunet import install


def measure(**changes) -> dict:
    values = {
        "_target_": "downstream.nnunet_engine.NnUNet", "n_labelled": [2], "seeds": 1, "epochs": 1, "iterations": 2,
        "patch_size": [16, 16, 24], "batch_size": 2, "mirroring": False, "loaders": 0,
    }  # fmt: skip
    return {"nnunet": values | changes}


def test_without_nnunet_it_is_refused_in_one_sentence(labelled_store, split_file, run_folder, tmp_path):
    values = suite_values(labelled_store, split_file, measures=measure(environment=str(tmp_path)))
    with pytest.raises(
        ValueError, match=r"measures.nnunet: nnU-Net is not installed in .* pip install 'ssl3d.nnunet.'"
    ):
        downstream.evaluate([run_folder], values, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_its_networks_exist_and_bad_values_name_their_key():
    assert all(import_object(name, "NETWORKS") for name in NETWORKS)
    bad = NnUNet(n_labelled=[1], epochs=0, batch_size=1, patch_size=(0, 8, 8))
    found = " ".join(bad.check("measures.nnunet"))
    assert all(f"measures.nnunet.{key} is" in found for key in ("epochs", "batch_size", "patch_size"))


def test_the_data_set_is_the_cells_and_lies_where_it_lay(labelled_store, split_file, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("downstream.nnunet_engine.version", lambda environment: "2.6")
    suite = load_suite(suite_values(labelled_store, split_file, measures=measure()))
    context, split, arms, _ = prepare([run_folder], suite, tmp_path / "out")
    choices = {("nnunet", arm.name): () for arm in arms}
    cell = final_cells(context, split, arms, choices)[0]
    write_dataset(context, cell, tmp_path / "raw")
    names = {context.store.volume_id(row) for row in context.rows_of(cell.labelled)}
    assert {p.name.removesuffix(".nii.gz") for p in (tmp_path / "raw" / "labelsTr").iterdir()} == names
    tested = {context.store.volume_id(row) for row in context.rows_of(split.test)}
    assert {p.name.removesuffix("_0000.nii.gz") for p in (tmp_path / "raw" / "imagesTs").iterdir()} == tested
    described = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "ball": 1, "rod": 2}
    row = context.rows_of(cell.labelled)[0]
    written = nib.load(tmp_path / "raw" / "labelsTr" / f"{context.store.volume_id(row)}.nii.gz")
    stored = context.store.read(row, (0, 0, 0), context.store.shape(row)[1:], kind=LABELS)[0]
    voxel = np.argwhere(stored == 7)[0]
    affine = np.asarray(context.store.attributes(row).affine)
    assert np.asanyarray(written.dataobj)[tuple(voxel[::-1])] == 2
    assert np.allclose(written.affine @ [*voxel[::-1], 1], affine @ [*voxel, 1], atol=1e-4)


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
def test_nnunet_trains_with_and_without_the_weights(labelled_store, split_file, tmp_path):
    folder = Path(os.environ.get("SSL3D_NNUNET_VENV", Path.home() / ".cache" / "ssl3d-tests" / "nnunet"))
    try:
        install(folder)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"nnU-Net could not be installed into {folder}: {str(error.stderr).strip()[-300:]}")
    run = write_run(tmp_path / "run", 1)
    values = suite_values(labelled_store, split_file, measures=measure(environment=str(folder)), metrics=["dice"])
    out = tmp_path / "out"
    downstream.evaluate([run], values, out)
    table = read_results(out)
    assert set(table["arm"]) == {"scratch", "run"} and set(table["step"]) == {2}
    assert set(table["patient"]) == {"patient_04", "patient_05", "patient_06"}
    assert table[table["label"] == MEAN_FOREGROUND]["value"].between(0, 1).all()
    assert dict(zip(table["arm"], table["init"])) == {"scratch": "random", "run": "encoder+decoder"}
    values_of = [table[table["arm"] == arm]["value"].to_numpy() for arm in ("scratch", "run")]
    assert not np.array_equal(*values_of), "the exported weights were loaded"
    assert not (out / "work").exists()
    kept = {p: p.stat().st_mtime_ns for p in (out / "cells").glob("*.csv")}
    downstream.evaluate([run], values, out)
    assert {p: p.stat().st_mtime_ns for p in (out / "cells").glob("*.csv")} == kept
