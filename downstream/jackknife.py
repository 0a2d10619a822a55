"""Metrics of a whole set of volumes, a value a patient: jackknife pseudo-values.

AUROC, F1 or a correlation belong to a set of patients, so no patient has one. The pseudo-value of patient p is
P f(all) - (P - 1) f(all but p), P patients in all (Quenouille, Biometrika 43, 1956; Tukey 1958). Their mean is f with
its first-order bias removed (for AUROC exactly f), and they vary over patients as f would, so they enter the crossed
model like any other score of a patient. For AUROC their variance is DeLong's (Biometrics 44, 1988) up to terms of
order 1/P.

The calibration error is a sum of absolute values over bins: without one patient edges move and signs turn, and such
values would be no estimate of it (their mean could be -0.5). It is a mean over volumes once bins and signs are
fixed, so each patient has his own part of that mean (the infinitesimal jackknife: Jaeckel, Bell Labs 1972).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from downstream.results import COLUMNS
from downstream.volume_metrics import (
    CLASSIFICATION,
    PREDICTION,
    REGRESSION,
    SET_METRICS,
    TRUTH,
    calibration_gaps,
    units,
)

Array = NDArray[np.float64]
SetMetric = Callable[[Array, Array], float]


def pseudo_values(truth: ArrayLike, prediction: ArrayLike, patients: ArrayLike, metric: SetMetric) -> dict[str, float]:
    """{patient: pseudo-value} of `metric`(truth (N,), prediction (N, K)) -> float over N volumes.

    All volumes of a patient are left out together. Where the metric is undefined (NaN) for the set or for the set less
    any one patient, as AUROC with a single patient of a class, every value is NaN: leaving out just the patients it
    hangs on would favour the rest.
    """
    truth, prediction = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    names, owner = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    whole, count = metric(truth, prediction), len(names)
    without = [metric(truth[owner != i], prediction[owner != i]) if count > 1 else np.nan for i in range(count)]
    values = count * whole - (count - 1) * np.asarray(without)
    if not np.isfinite(values).all():
        values = np.full(count, np.nan)
    return {str(name): float(value) for name, value in zip(names, values)}


def parts_of_mean(values: ArrayLike, patients: ArrayLike) -> dict[str, float]:
    """{patient: his part of the mean of values (N,)}: the sum of his own times patients / N."""
    values = np.asarray(values, dtype=np.float64)
    names, owner = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    sums = np.bincount(owner, weights=values, minlength=len(names))
    return {str(name): float(part) for name, part in zip(names, sums * len(names) / len(values))}


def values_of(name: str, truth: Array, prediction: Array, patients: ArrayLike) -> dict[str, float]:
    """{patient: value} of the metric called `name`, whose mean stands for the set's: the way that fits the metric."""
    if name == "ece":
        return parts_of_mean(calibration_gaps(truth, prediction), patients)
    return pseudo_values(truth, prediction, patients, SET_METRICS[name])


def pseudo_rows(results: pd.DataFrame, metrics: Collection[str] | None = None) -> pd.DataFrame:
    """Rows (COLUMNS) of each set-level metric, one a patient, from the prediction and truth rows of each training.

    Classification or regression metrics (volume_metrics.CLASSIFICATION, REGRESSION), whichever the predictions are of;
    `metrics`: of these alone. Raises ValueError when a volume has not both (volume_metrics.units).
    """
    rows = results[results["metric"].isin([PREDICTION, TRUTH])]
    of_patients = {"patient", "case", "domain", "label", "metric", "value"}  # the rest says which training
    keys = [name for name in COLUMNS if name not in of_patients]
    tables = []
    for values, cell in rows.groupby(keys, sort=False, dropna=False):
        about: dict[str, Any] = dict(zip(keys, values))
        found = units(cell)
        functions = REGRESSION if found.is_regression else CLASSIFICATION
        for name in functions if metrics is None else [name for name in functions if name in metrics]:
            pseudo = values_of(name, found.truth, found.prediction, found.patients)
            own = pd.DataFrame({"patient": list(pseudo), "value": list(pseudo.values())})
            tables.append(own.assign(**about, case=own["patient"], domain="", label="", metric=name))
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]
