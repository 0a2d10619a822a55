"""A whole evaluation of a target of volumes: from stores to report, resumed to the byte."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from pathology_store import volume_suite, write_data
from shapes_store import write_run

import downstream
from downstream.comparison import compare
from downstream.results import read_results
from downstream.volume_metrics import units
from downstream.volume_probe import FrozenVolumes


def test_two_measures_of_the_same_windows_encode_a_volume_once(tmp_path, monkeypatch):
    store, split = write_data(tmp_path)
    values = volume_suite(store, split)
    values["measures"].pop("finetune")
    encoded = []
    features = FrozenVolumes.features

    def counted(self, context, backbone, row):
        encoded.append(row)
        return features(self, context, backbone, row)

    monkeypatch.setattr(FrozenVolumes, "features", counted)
    run = write_run(tmp_path / "runs" / "mae", 1)
    downstream.evaluate([run], values, tmp_path / "out")
    both = read_results(tmp_path / "out")
    once = len(encoded)
    assert not (tmp_path / "out" / "work").exists()
    values["measures"].pop("probe")
    downstream.evaluate([run], values, tmp_path / "alone")
    assert len(encoded) == 2 * once  # alone it encodes what both had encoded together
    alone = read_results(tmp_path / "alone")
    pd.testing.assert_frame_equal(both[both["schedule"] == "neighbours"].reset_index(drop=True), alone)


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
