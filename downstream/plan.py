"""Which cells an evaluation has, and which learning rate each arm gets: pure functions of suite, split and results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from downstream.arms import Arm
from downstream.context import FINETUNE, PROBE, TEST, VALIDATION, Cell, Context
from downstream.results import MEAN_FOREGROUND
from downstream.splits import Split, labelled_subset
from downstream.suite import seeds


def probe_cells(context: Context, split: Split, arms: Sequence[Arm]) -> list[Cell]:
    """A cell for each arm, amount of labels and seed."""
    measure = context.suite.measures.probe
    if measure is None:
        return []
    return [
        _cell(context, split, PROBE, arm, n, seed)
        for arm in arms
        for n in measure.n_labelled
        for seed in seeds(measure.seeds)
    ]


def search_cells(context: Context, split: Split, arms: Sequence[Arm]) -> list[Cell]:
    """The learning-rate search: for each arm every rate, scored on validation patients; none when there is one rate.

    Its labelled patients are drawn apart from those of the test cells.
    """
    measure = context.suite.measures.finetune
    if measure is None or len(measure.optim.lr) == 1:
        return []
    n = measure.tune.n_labelled or max(measure.n_labelled)
    cells = []
    for seed in range(measure.tune.seeds):
        labelled = labelled_subset(split.pool, n, context.suite.seed, f"search {seed}")
        for arm in arms:
            for lr in measure.optim.lr:
                cells.append(Cell(FINETUNE, arm, n, seed, labelled, split.validation, VALIDATION, lr))
    return cells


def best_rates(arms: Sequence[Arm], rates: Sequence[float], results: pd.DataFrame) -> dict[str, float]:
    """{arm name: learning rate} with the best mean foreground Dice over seeds and validation patients.

    `results`: rows of the search with columns arm, lr, patient, label, metric, value; empty when there is one rate.
    Equal rates go to the smaller.
    """
    if len(rates) == 1:
        return {arm.name: rates[0] for arm in arms}
    dice = results[(results["metric"] == "dice") & (results["label"] == MEAN_FOREGROUND)]
    by_patient = dice.groupby(["arm", "lr", "patient"])["value"].mean()  # a patient counts once, however many scans
    means = by_patient.groupby(level=["arm", "lr"]).mean()
    return {arm.name: max(sorted(rates), key=lambda lr: means[(arm.name, lr)]) for arm in arms}


def finetune_cells(context: Context, split: Split, arms: Sequence[Arm], rates: dict[str, float]) -> list[Cell]:
    """A fine-tuning cell for each arm, amount of labels and seed, at the arm's learning rate."""
    measure = context.suite.measures.finetune
    if measure is None:
        return []
    return [
        _cell(context, split, FINETUNE, arm, n, seed, rates[arm.name])
        for n in measure.n_labelled
        for seed in seeds(measure.seeds)
        for arm in arms
    ]


def shown(context: Context) -> tuple[str, int, int]:
    """(measure, n_labelled, seed) of the cells whose predictions the report shows: the middle of the curve."""
    measures = context.suite.measures
    name = FINETUNE if measures.finetune else PROBE
    measure = measures.finetune or measures.probe
    assert measure is not None
    amounts = sorted(measure.n_labelled)
    return name, amounts[(len(amounts) - 1) // 2], seeds(measure.seeds)[0]


def picture_rows(context: Context, split: Split) -> tuple[int, ...]:
    """Store rows of the test cases shown, spread evenly over the sorted patients: chosen before any score is known."""
    count = min(context.suite.pictures, len(split.test))
    chosen = np.linspace(0, len(split.test) - 1, count).round().astype(int)
    return tuple(context.rows[split.test[i]][0] for i in chosen)


def _cell(context: Context, split: Split, measure: str, arm: Arm, n: int, seed: int, lr: float | None = None) -> Cell:
    labelled = labelled_subset(split.pool, n, context.suite.seed, seed)
    pictures = picture_rows(context, split) if (measure, n, seed) == shown(context) else ()
    return Cell(measure, arm, n, seed, labelled, split.test, TEST, lr, pictures)
