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
    last = rows[rows["step"] == rows["step"].max()]
    trainings = [part for _, part in last.groupby("seed")] if "seed" in last else [last]
    return float(np.mean([_merit(units(part)) for part in trainings]))


def merit_name(rows: pd.DataFrame) -> str:
    """What `merit` is of these rows, in words."""
    last = rows[rows["step"] == rows["step"].max()]
    found = units(last[last["seed"] == last["seed"].iloc[0]] if "seed" in last else last)
    if found.is_regression:
        return "negative mean absolute error"
    return "log likelihood" if _few(found) else "AUROC"


def _merit(found: Units) -> float:
    if found.is_regression:
        return -mae(found.truth, found.prediction)
    return -log_loss(found.truth, found.prediction) if _few(found) else auroc(found.truth, found.prediction)


def _few(found: Units) -> bool:
    undefined_area = undefined("auroc", found.truth, found.prediction, found.labels)
    return len(set(found.patients)) < FEW_PATIENTS or bool(undefined_area)
