"""Set-level metrics against scikit-learn and scipy, with ties, missing classes and several volumes a patient."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as reference

from downstream.volume_metrics import (
    CLASSIFICATION,
    REGRESSION,
    auroc,
    average_precision,
    brier,
    calibration_error,
    f1,
    log_loss,
    mae,
    pearson,
    rmse,
    spearman,
    undefined,
    units,
)


def drawn(seed: int, classes: int, n: int = 37) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probabilities that know a little of it; rounded, so that scores tie."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    raw = rng.gamma(1.0, size=(n, classes)) + 0.7 * np.eye(classes)[truth]
    return truth.astype(float), np.round(raw / raw.sum(1, keepdims=True), 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classification_equals_scikit_learn(seed, classes):
    truth, p = drawn(seed, classes)
    one_hot = np.eye(classes)[truth.astype(int)]
    chosen = [1] if classes == 2 else range(classes)
    assert auroc(truth, p) == pytest.approx(np.mean([reference.roc_auc_score(one_hot[:, k], p[:, k]) for k in chosen]))
    assert average_precision(truth, p) == pytest.approx(
        np.mean([reference.average_precision_score(one_hot[:, k], p[:, k]) for k in chosen])
    )
    said = p.argmax(1)
    own = reference.f1_score(truth, said, average=None, labels=range(classes), zero_division=0)
    assert f1(truth, p) == pytest.approx(own[1] if classes == 2 else own.mean())
    p = (p + 0.01) / (p + 0.01).sum(1, keepdims=True)
    expected = ((p - one_hot) ** 2).sum(1).mean() if classes > 2 else reference.brier_score_loss(truth, p[:, 1])
    assert brier(truth, p) == pytest.approx(expected)
    assert log_loss(truth, p) == pytest.approx(reference.log_loss(truth, p, labels=range(classes)))


@pytest.mark.parametrize("seed", range(5))
def test_regression_equals_scikit_learn_and_scipy(seed):
    rng = np.random.default_rng(seed)
    truth = rng.normal(60, 20, 31).round(-1)
    p = (truth + rng.normal(0, 15, 31)).round(-1)[:, None]
    assert mae(truth, p) == pytest.approx(reference.mean_absolute_error(truth, p))
    assert rmse(truth, p) == pytest.approx(reference.root_mean_squared_error(truth, p))
    assert pearson(truth, p) == pytest.approx(stats.pearsonr(truth, p[:, 0]).statistic)
    assert spearman(truth, p) == pytest.approx(stats.spearmanr(truth, p[:, 0]).statistic)


def slow_calibration_error(truth: np.ndarray, p: np.ndarray) -> float:
    """Bin by bin, volume by volume."""
    confidence, n = p.max(1), len(truth)
    bins = min(10, max(1, n // 5))
    edges = [-np.inf, *(np.quantile(confidence, k / bins) for k in range(1, bins)), np.inf]
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [i for i in range(n) if low <= confidence[i] < high]
        if inside:
            accuracy = np.mean([p[i].argmax() == truth[i] for i in inside])
            total += len(inside) / n * abs(accuracy - np.mean([confidence[i] for i in inside]))
    return total


@pytest.mark.parametrize("n", [3, 12, 37, 200])
def test_calibration_error_equals_its_slow_twin(n):
    truth, p = drawn(n, 3, n)
    assert calibration_error(truth, p) == pytest.approx(slow_calibration_error(truth, p))
    order = np.random.default_rng(0).permutation(n)  # ties included, the order of the volumes says nothing
    assert calibration_error(truth[order], p[order]) == pytest.approx(calibration_error(truth, p))


def test_calibrated_probabilities_have_little_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20_000)
    truth = (rng.uniform(size=20_000) < p).astype(float)
    assert calibration_error(truth, np.stack([1 - p, p], 1)) < 0.01
    sure = (np.stack([1 - p, p], 1) > 0.5).astype(float)
    assert calibration_error(truth, sure) == pytest.approx(0.25, abs=0.01)


def test_what_has_no_value_is_nan_and_says_why():
    truth, p = drawn(0, 3)
    some = truth != 1
    for name in ("auroc", "ap", "f1"):
        assert np.isnan(CLASSIFICATION[name](truth[some], p[some]))
        assert undefined(name, truth[some], p[some], ("a", "b", "c")) == "no volume has the class 'b'"
        assert undefined(name, truth, p, ("a", "b", "c")) == ""
    assert np.isfinite(CLASSIFICATION["brier"](truth[some], p[some]))
    assert undefined("brier", truth[some], p[some], ("a", "b", "c")) == ""
    constant = np.ones((37, 1))
    for name in ("pearson", "spearman"):
        assert np.isnan(REGRESSION[name](truth, constant))
        assert undefined(name, truth, constant, ("value",)) == "all predicted values are equal"
        assert undefined(name, constant[:, 0], truth[:, None], ("value",)) == "all true values are equal"
    assert auroc(np.array([0.0, 1, 1]), np.full((3, 2), 0.5)) == 0.5  # only ties: chance


def test_a_patient_counts_once_however_often_scanned():
    rows = [
        ("b", "b1", {"no": 0.2, "yes": 0.8}, 1), ("b", "b2", {"no": 0.6, "yes": 0.4}, 1),
        ("a", "a1", {"no": 0.7, "yes": 0.3}, 0), ("a", "a2", {"no": 0.1, "yes": 0.9}, 1),
    ]  # fmt: skip
    table = pd.DataFrame(
        [
            row
            for patient, case, p, truth in rows
            for row in (
                *((patient, case, label, "prediction", value) for label, value in p.items()),
                (patient, case, "value", "truth", truth),
            )
        ],
        columns=["patient", "case", "label", "metric", "value"],
    )
    found = units(table)
    assert found.labels == ("no", "yes") and not found.is_regression
    assert found.patients.tolist() == ["a", "a", "b"] and found.truth.tolist() == [0, 1, 1]
    np.testing.assert_allclose(found.prediction, [[0.7, 0.3], [0.1, 0.9], [0.4, 0.6]])
    with pytest.raises(ValueError, match="volume a1 of patient a has not both"):
        units(table[(table["case"] != "a1") | (table["metric"] != "truth")])
