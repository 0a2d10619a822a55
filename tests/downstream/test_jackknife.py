"""Pseudo-values: textbook identities, DeLong's variance, patients with several volumes, and what is undefined."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from downstream.jackknife import parts_of_mean, pseudo_rows, pseudo_values
from downstream.results import COLUMNS
from downstream.volume_metrics import CLASSIFICATION, calibration_error, calibration_gaps
from ssl3d.seeding import numpy_generator


def auroc(truth, prediction):
    """P(score of a positive > score of a negative), ties a half; the second column scores class 1."""
    positive, negative = prediction[truth == 1, -1], prediction[truth == 0, -1]
    if not len(positive) or not len(negative):
        return np.nan
    return float((np.sign(positive[:, None] - negative[None]) / 2 + 0.5).mean())


def _set(count=30, seed=0):
    generator = numpy_generator(seed, "jackknife")
    truth = (np.arange(count) % 2).astype(float)
    score = truth + generator.normal(0, 1, count)
    return truth, np.stack([-score, score], 1), [f"p{i:02d}" for i in range(count)]


def test_of_a_mean_they_are_the_values():
    truth, prediction, patients = _set()
    found = pseudo_values(truth, prediction, patients, lambda t, p: float(p[:, 1].mean()))
    assert list(found.values()) == pytest.approx(prediction[:, 1])


def test_of_auroc_their_mean_is_auroc_and_their_variance_delongs():
    truth, prediction, patients = _set(60)
    values = np.array(list(pseudo_values(truth, prediction, patients, auroc).values()))
    assert values.mean() == pytest.approx(auroc(truth, prediction))
    wins = np.sign(prediction[truth == 1, 1][:, None] - prediction[truth == 0, 1][None]) / 2 + 0.5
    delong = wins.mean(1).var(ddof=1) / 30 + wins.mean(0).var(ddof=1) / 30
    assert values.var(ddof=1) / 60 == pytest.approx(delong, rel=0.05)


def test_the_volumes_of_a_patient_leave_together():
    truth, prediction, _ = _set(8)
    patients = ["a", "a", "b", "b", "c", "c", "d", "d"]
    found = pseudo_values(truth, prediction, patients, auroc)
    left = np.array([name != "b" for name in patients])
    assert found["b"] == pytest.approx(4 * auroc(truth, prediction) - 3 * auroc(truth[left], prediction[left]))


def test_undefined_without_one_patient_is_undefined():
    truth, prediction, patients = _set(6)
    truth[:] = 0
    truth[2] = 1
    assert all(np.isnan(value) for value in pseudo_values(truth, prediction, patients, auroc).values())


def _rows(seeds=(0, 1), count=12):
    lines = []
    for seed in seeds:
        truth, prediction, patients = _set(count, seed)
        shared = ("s", "d", "mae", "runs/mae", 0, "MAE-1", "encoder", "classify", 4, seed, seed, 100, "test")
        for t, row, patient in zip(truth, prediction, patients):
            own = [("healthy", "prediction", row[0]), ("ill", "prediction", row[1]), ("ill", "truth", t)]
            for label, metric, value in own:
                fields = dict(zip(("suite", "dataset", "arm", "run", "pretrain_seed", "method", "init", "schedule",
                                   "n_labelled", "subset", "seed", "step", "split"), shared))  # fmt: skip
                lines.append(fields | {"patient": patient, "case": patient, "label": label, "metric": metric,
                                       "value": value})  # fmt: skip
    return pd.DataFrame([dict.fromkeys(COLUMNS, "") | line for line in lines])


def test_rows_of_results():
    found = pseudo_rows(_rows())
    assert list(found.columns) == list(COLUMNS)
    assert set(found["metric"]) == set(CLASSIFICATION) and len(found) == 2 * len(CLASSIFICATION) * 12
    own = found[(found["seed"] == 1) & (found["metric"] == "auroc")]
    truth, prediction, _ = _set(12, 1)
    assert own["value"].mean() == pytest.approx(auroc(truth, prediction))
    assert set(pseudo_rows(_rows(), ["f1"])["metric"]) == {"f1"}
    assert pseudo_rows(_rows()[:0]).empty


def test_a_patients_part_of_a_mean():
    found = parts_of_mean([1.0, 2.0, 6.0], ["a", "a", "b"])
    assert found == {"a": pytest.approx(2.0), "b": pytest.approx(4.0)} and np.mean(list(found.values())) == 3


@pytest.mark.parametrize("spread", [0.3, 0.01, 0.0])
def test_the_calibration_error_is_that_of_the_set_however_alike_probabilities_are(spread):
    """Leaving patients out moves the edges of bins of such: the mean of pseudo-values was down to -0.45."""
    generator = numpy_generator(0, "calibration")
    truth = (np.arange(60) % 2).astype(float)
    positive = 0.5 + spread * generator.uniform(-1, 1, 60)
    prediction, patients = np.stack([1 - positive, positive], 1), [f"p{i:02d}" for i in range(60)]
    found = parts_of_mean(calibration_gaps(truth, prediction), patients)
    assert np.mean(list(found.values())) == pytest.approx(calibration_error(truth, prediction))
    table = _rows((0,), 60)
    table.loc[table["metric"] == "prediction", "value"] = prediction.ravel()
    own = pseudo_rows(table, ["ece"])
    assert own["value"].mean() == pytest.approx(calibration_error(truth, prediction))
    assert own["value"].abs().max() <= 1


def test_regression_has_metrics_of_its_own():
    table = _rows()
    table = table[table["label"] == "ill"].assign(label="value")
    found = pseudo_rows(table, ["mae", "auroc"])
    truth, prediction, _ = _set(12, 0)
    assert set(found["metric"]) == {"mae"}
    assert found.loc[found["seed"] == 0, "value"].to_numpy() == pytest.approx(np.abs(prediction[:, 1] - truth))


def test_rows_without_truth_are_refused():
    table = _rows()
    with pytest.raises(ValueError, match="truth"):
        pseudo_rows(table[table["metric"] == "prediction"])


def test_pearson_is_less_biased_than_the_plain_one():
    def correlation(truth, prediction):
        return float(stats.pearsonr(truth, prediction[:, 0]).statistic)

    generator = numpy_generator(3, "pearson")
    truth = generator.normal(0, 1, (300, 10))
    noisy = 0.7 * truth + np.sqrt(1 - 0.49) * generator.normal(0, 1, (300, 10))
    plain = [correlation(t, n[:, None]) for t, n in zip(truth, noisy)]
    corrected = [np.mean(list(pseudo_values(t, n[:, None], range(10), correlation).values()))
                 for t, n in zip(truth, noisy)]  # fmt: skip
    assert abs(np.mean(corrected) - 0.7) < abs(np.mean(plain) - 0.7) + 0.01
