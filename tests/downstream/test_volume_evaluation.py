"""A whole evaluation of a target of volumes: from stores to report, resumed to the byte."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from pathology_store import volume_suite, write_data
from shapes_store import write_run

import downstream
from downstream.comparison import compare
from downstream.results import read_results
from downstream.volume_metrics import units


@pytest.mark.parametrize(
    "target",
    [pytest.param("pathology", marks=pytest.mark.slow), pytest.param("lesion_share", marks=pytest.mark.acceptance)],
)
def test_a_whole_evaluation(target, tmp_path):
    store, split = write_data(tmp_path)
    values = volume_suite(store, split, target=target)
    run = write_run(tmp_path / "runs" / "mae", 1)
    report = downstream.evaluate([run], values, tmp_path / "out")
    assert report.stat().st_size > 1000
    table = read_results(tmp_path / "out")
    labels = {"0", "1"} if target == "pathology" else {"value"}
    assert set(table["metric"]) == {"prediction", "truth"} and np.isfinite(table["value"]).all()
    assert set(table.loc[table["metric"] == "prediction", "label"]) == labels
    assert {s.split()[0] for s in table.loc[table["split"] == "validation", "schedule"]} == {"finetune"}
    test = table[table["split"] == "test"]
    for _, training in test.groupby(["arm", "schedule", "n_labelled", "seed"]):
        found = units(training)
        assert len(found.patients) == 4 and found.is_regression == (target != "pathology")
    probe = test[(test["schedule"] == "probe") & (test["metric"] == "prediction")]
    assert probe.groupby(["patient", "label"])["value"].nunique().min() > 1  # weights, labels and seeds matter
    points = compare(table)
    metrics = {"auroc", "brier"} if target == "pathology" else {"mae"}
    assert metrics <= {p.metric for p in points} and {p.measure for p in points} == set(values["measures"])

    if target == "pathology":
        return  # that it goes on where it was, once, is acceptance
    before = (tmp_path / "out" / "results.csv").read_bytes()
    for path in sorted((tmp_path / "out" / "cells").glob("*.csv"))[::3]:
        path.unlink()
    shutil.rmtree(tmp_path / "out" / "work", ignore_errors=True)
    downstream.evaluate([run], values, tmp_path / "out")
    assert (tmp_path / "out" / "results.csv").read_bytes() == before
