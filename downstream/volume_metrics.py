"""Metrics of a whole set of volumes from their truth and prediction: discrimination, calibration, error, correlation.

Every metric is f(truth (N,), prediction (N,K)) -> float, in float64. Classification: truth is a class index 0..K-1, a
row of prediction its K probabilities; with two classes the second one is "positive", with more the metric is the plain
mean over the classes, each against the rest. Regression: prediction is (N,1), in the units of the target.
Where a metric has no value it is NaN, and `undefined` says why: a class no volume has, a constant that correlates with
nothing. Ties: equal scores count half in AUROC and share a rank in the rank correlation; in the average precision they
enter together; equal probabilities of the likeliest class go to the first of them.

These few lines stand in for scikit-learn's, whose checks of every call take a hundred times as long: a jackknife over
patients calls each metric once a patient. tests/downstream/test_volume_metrics.py holds them to scikit-learn and scipy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

PREDICTION, TRUTH, VALUE = "prediction", "truth", "value"  # metrics of results.csv, and the label of a number
MOST_BINS = 10  # of the calibration error
VOLUMES_A_BIN = 5

Array = NDArray[np.float64]
Function = Callable[[Array, Array], float]


@dataclass(frozen=True)
class Units:
    """What is scored: `patients` (N,), `truth` (N,), `prediction` (N,K), `labels`: names of the K columns.

    A unit is a patient: the predictions of his volumes are averaged, so that nobody counts twice for being scanned
    twice. Where his volumes differ in truth, each truth is a unit of his.
    """

    patients: NDArray[np.str_]
    truth: Array
    prediction: Array
    labels: tuple[str, ...]

    @property
    def is_regression(self) -> bool:
        return self.labels == (VALUE,)


def units(rows: pd.DataFrame) -> Units:
    """The units of one training's rows of results.csv (metrics `prediction` and `truth`), sorted by patient and truth.

    Raises ValueError when a volume has a prediction and no truth, or the other way round.
    """
    predicted = rows[rows["metric"] == PREDICTION]
    labels = tuple(str(label) for label in pd.unique(predicted["label"]))  # written in the order of the classes
    wide = predicted.pivot(index=["patient", "case"], columns="label", values="value")[list(labels)]
    truth = rows[rows["metric"] == TRUTH].set_index(["patient", "case"])["value"].rename(TRUTH)
    table = wide.astype(float).join(truth.astype(float), how="outer")
    if table.isna().any(axis=None):
        patient, case = table.index[int(table.isna().any(axis=1).to_numpy().argmax())]
        raise ValueError(f"volume {case} of patient {patient} has not both a prediction and a truth")
    means = table.reset_index().groupby(["patient", TRUTH])[list(labels)].mean().reset_index()
    return Units(
        means["patient"].to_numpy(dtype=str),
        means[TRUTH].to_numpy(dtype=np.float64),
        means[list(labels)].to_numpy(dtype=np.float64),
        labels,
    )


def auroc(truth: Array, prediction: Array) -> float:
    """Area under the receiver operating characteristic: the chance that a positive outranks a negative one."""
    return _over_classes(truth, prediction, _auroc)


def average_precision(truth: Array, prediction: Array) -> float:
    """Area under precision over recall by steps, without interpolation (scikit-learn's)."""
    return _over_classes(truth, prediction, _average_precision)


def f1(truth: Array, prediction: Array) -> float:
    """2 TP / (2 TP + FP + FN) of the likeliest class."""
    likeliest = prediction.argmax(axis=1)

    def of_class(is_class: NDArray[np.bool_], k: int) -> float:
        said = likeliest == k
        return 2.0 * int((is_class & said).sum()) / (int(is_class.sum()) + int(said.sum()))

    return _mean_over(truth, prediction.shape[1], of_class)


def brier(truth: Array, prediction: Array) -> float:
    """Mean squared error of the probabilities: of the positive class with two, summed over the classes with more."""
    error = ((prediction - np.eye(prediction.shape[1])[truth.astype(int)]) ** 2).sum(axis=1)
    return float(error.mean() / (2 if prediction.shape[1] == 2 else 1))


def calibration_error(truth: Array, prediction: Array) -> float:
    """Expected calibration error of the likeliest class: mean |accuracy - confidence| over bins, by their volumes.

    Adaptive bins (Nixon et al., CVPR workshops 2019): equally many volumes a bin, one bin for every 5 volumes and at
    most 10; equal confidences lie in one bin. With few volumes it is biased upwards, more with more bins.
    """
    return float(calibration_gaps(truth, prediction).mean())


def calibration_gaps(truth: Array, prediction: Array) -> Array:
    """(N,): right or not less the confidence, with the sign of its sum over the bin: their mean is the error."""
    confidence, right = prediction.max(axis=1), prediction.argmax(axis=1) == truth
    bins = bins_for(len(truth))
    edges = np.quantile(confidence, np.arange(1, bins) / bins)
    place = np.searchsorted(edges, confidence, side="right")
    gap = right - confidence
    return np.asarray(np.sign(np.bincount(place, weights=gap, minlength=bins))[place] * gap)


def bins_for(volumes: int) -> int:
    """How many bins the calibration error has for so many volumes."""
    return int(np.clip(volumes // VOLUMES_A_BIN, 1, MOST_BINS))


def log_loss(truth: Array, prediction: Array) -> float:
    """Mean of -log(probability of the true class), probabilities no smaller than 1e-6."""
    own = prediction[np.arange(len(truth)), truth.astype(int)]
    return float(-np.log(np.clip(own, 1e-6, 1)).mean())


def mae(truth: Array, prediction: Array) -> float:
    """Mean absolute error."""
    return float(np.abs(prediction[:, 0] - truth).mean())


def rmse(truth: Array, prediction: Array) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(((prediction[:, 0] - truth) ** 2).mean()))


def pearson(truth: Array, prediction: Array) -> float:
    """Linear correlation."""
    return _correlation(truth, prediction[:, 0])


def spearman(truth: Array, prediction: Array) -> float:
    """Rank correlation, equal values sharing their mean rank."""
    return _correlation(rankdata(truth), rankdata(prediction[:, 0]))


CLASSIFICATION: dict[str, Function] = {
    "auroc": auroc,
    "ap": average_precision,
    "f1": f1,
    "brier": brier,
    "ece": calibration_error,
}
REGRESSION: dict[str, Function] = {"mae": mae, "rmse": rmse, "pearson": pearson, "spearman": spearman}
SET_METRICS = CLASSIFICATION | REGRESSION


def undefined(metric: str, truth: Array, prediction: Array, labels: Sequence[str]) -> str:
    """Why a metric has no value for these volumes; "" where it has one."""
    if not len(truth):
        return "there is no volume"
    if metric in ("auroc", "ap", "f1"):
        for k, label in enumerate(labels):
            count = int((truth == k).sum())
            if not count:
                return f"no volume has the class '{label}'"
            if metric == "auroc" and count == len(truth):
                return f"every volume has the class '{label}'"
    if metric in ("pearson", "spearman"):
        for words, values in (("true", truth), ("predicted", prediction[:, 0])):
            if np.ptp(values) == 0:
                return f"all {words} values are equal"
    return ""


def _over_classes(truth: Array, prediction: Array, function: Callable[[NDArray[np.bool_], Array], float]) -> float:
    return _mean_over(truth, prediction.shape[1], lambda own, k: function(own, prediction[:, k]))


def _mean_over(truth: Array, classes: int, function: Callable[[NDArray[np.bool_], int], float]) -> float:
    """Of the positive class with two, the plain mean over all with more; NaN when one of the classes has no volume."""
    own = [truth == k for k in range(classes)]
    if not all(is_class.any() for is_class in own):
        return float("nan")
    chosen = [1] if classes == 2 else range(classes)
    return float(np.mean([function(own[k], k) for k in chosen]))


def _auroc(positive: NDArray[np.bool_], score: Array) -> float:
    """By the ranks: the Mann-Whitney statistic over the number of pairs."""
    n = int(positive.sum())
    above = rankdata(score)[positive].sum() - n * (n + 1) / 2
    return float(above / (n * (len(score) - n)))


def _average_precision(positive: NDArray[np.bool_], score: Array) -> float:
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # equal scores enter together
    found = np.cumsum(positive[order])[last]
    precision = found / (np.flatnonzero(last) + 1)
    recall = found / positive.sum()
    return float((np.diff(recall, prepend=0) * precision).sum())


def _correlation(x: Array, y: Array) -> float:
    if not len(x) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    a, b = x - x.mean(), y - y.mean()
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1, 1))
