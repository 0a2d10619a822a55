"""What the search of a measure of whole volumes goes by: one number of the validation rows of a choice."""

from __future__ import annotations

import numpy as np
import pandas as pd

from downstream.volume_metrics import Units, auroc, log_loss, mae, undefined, units

FEW_PATIENTS = 20  # below, the area under a curve of so few steps chooses by luck: the likelihood is taken


def merit(rows: pd.DataFrame) -> float:
    """How good the rows of a choice are, more is better: AUROC or -MAE, the mean over its trainings.

    With few patients, or a class without any, it is -(log loss) instead: a likelihood does not need many to differ.
    """
    return float(np.mean([_merit(found) for found in _trainings(rows)]))


def merit_name(rows: pd.DataFrame) -> str:
    """What `merit` is of these rows, in words."""
    found = _trainings(rows)[0]
    if found.is_regression:
        return "negative mean absolute error"
    return "log likelihood" if _few(found) else "AUROC"


def _trainings(rows: pd.DataFrame) -> list[Units]:
    """What each training predicted at its end."""
    last = rows[rows["step"] == rows["step"].max()]
    return [units(part) for _, part in last.groupby("seed")] if "seed" in last else [units(last)]


def _merit(found: Units) -> float:
    if found.is_regression:
        return -mae(found.truth, found.prediction)
    return -log_loss(found.truth, found.prediction) if _few(found) else auroc(found.truth, found.prediction)


def _few(found: Units) -> bool:
    undefined_area = undefined("auroc", found.truth, found.prediction, found.labels)
    return len(set(found.patients)) < FEW_PATIENTS or bool(undefined_area)
