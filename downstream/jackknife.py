"""Metrics of a whole set of volumes, a value a patient: jackknife pseudo-values.

AUROC, F1 or a correlation belong to a set of patients, so no patient has one. The pseudo-value of patient p is
P f(all) - (P - 1) f(all but p), P patients in all (Quenouille, Biometrika 43, 1956; Tukey 1958). Their mean is f with
its first-order bias removed (for AUROC exactly f), and they vary over patients as f would, so they enter the crossed
model like any other score of a patient. For AUROC their variance is DeLong's (Biometrics 44, 1988) up to terms of
order 1/P.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from downstream.results import COLUMNS

PREDICTION, TRUTH = "prediction", "truth"  # metrics of results.csv that hold what a volume was given, and what it is
SetMetric = Callable[[NDArray[np.float64], NDArray[np.float64]], float]
_MEASURED = ("patient", "case", "label", "metric", "value")


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


def pseudo_rows(results: pd.DataFrame, metrics: Mapping[str, SetMetric]) -> pd.DataFrame:
    """Rows (COLUMNS) of each metric in `metrics`, one a patient, from the prediction and truth rows of each training.

    Predictions of a case are ordered as their labels first appear in `results`: the order of the classes. Raises
    ValueError when a case has a prediction and no truth, or not all labels.
    """
    rows = results[results["metric"].isin([PREDICTION, TRUTH])]
    labels = list(dict.fromkeys(rows.loc[rows["metric"] == PREDICTION, "label"]))
    keys = [name for name in COLUMNS if name not in _MEASURED]
    tables = []
    for values, cell in rows.groupby(keys, sort=False, dropna=False):
        truth, prediction, patients = _volumes(cell, labels)
        for name, metric in metrics.items():
            found = pseudo_values(truth, prediction, patients, metric)
            own = pd.DataFrame({"patient": list(found), "value": list(found.values())})
            about: dict[str, Any] = dict(zip(keys, values))
            tables.append(own.assign(**about, case=own["patient"], label="", metric=name))
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def _volumes(
    cell: pd.DataFrame, labels: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.str_]]:
    """Truth (N,), predictions (N, K) and patients (N,) of one training's volumes."""
    predictions = cell[cell["metric"] == PREDICTION]
    wide = predictions.pivot(index=["patient", "case"], columns="label", values="value").reindex(columns=labels)
    known = cell[cell["metric"] == TRUTH].set_index(["patient", "case"])["value"].reindex(wide.index)
    missing = wide.isna().any(axis=1) | known.isna()
    if missing.any():
        case = wide.index[int(np.argmax(missing.to_numpy()))][1]
        raise ValueError(f"results.csv holds no truth, or not every prediction, of the case '{case}': evaluate again")
    patients = wide.index.get_level_values("patient").to_numpy().astype(str)
    return known.to_numpy(dtype=np.float64), wide.to_numpy(dtype=np.float64), patients
