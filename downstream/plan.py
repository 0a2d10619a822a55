"""Which cells an evaluation has, and which settings each arm gets: pure functions of suite, split and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from downstream.arms import Arm
from downstream.context import TEST, VALIDATION, Cell, Context
from downstream.measure import Choice
from downstream.splits import Split, labelled_subset


def search_cells(context: Context, split: Split, arms: Sequence[Arm]) -> list[Cell]:
    """The search of each measure that has one: every choice for each arm, scored on validation patients.

    Its labelled patients are drawn apart from those of the test cells.
    """
    cells = []
    for name, measure in context.suite.measures.items():
        for seed in range(measure.tune.seeds if measure.searches() else 0):
            labelled = labelled_subset(
                split.pool, measure.tuned_at(), context.suite.seed, f"search {seed}", context.strata
            )
            cells += [
                Cell(name, arm, measure.tuned_at(), seed, labelled, split.validation, VALIDATION, choice)
                for arm in arms
                for choice in measure.grid()
            ]
    return cells


def best_choices(context: Context, arms: Sequence[Arm], results: pd.DataFrame) -> dict[tuple[str, str], Choice]:
    """{(measure, arm name): the choice of greatest merit on the validation patients}; of equals the first.

    `results`: rows of the search with columns measure, arm, choice (its number in the grid) and those of a cell; a
    measure without a search has one choice, the same for all arms.
    """
    searched = {name for name, measure in context.suite.measures.items() if measure.searches()}
    return {
        (name, arm.name): best_choice(context, name, arm, results) if name in searched else measure.grid()[0]
        for name, measure in context.suite.measures.items()
        for arm in arms
    }


def best_choice(context: Context, name: str, arm: Arm, results: pd.DataFrame) -> Choice:
    """As best_choices, of one measure and arm."""
    measure = context.suite.measures[name]
    grid = measure.grid()
    own = results[(results["measure"] == name) & (results["arm"] == arm.name)]
    merits = [measure.merit(own[own["choice"] == i]) for i in range(len(grid))]
    return grid[int(np.nanargmax(merits)) if not np.isnan(merits).all() else 0]


def final_cells(
    context: Context,
    split: Split,
    arms: Sequence[Arm],
    choices: Mapping[tuple[str, str], Choice],
    measures: Sequence[str] | None = None,
) -> list[Cell]:
    """A cell for each measure (of the suite, or those named), amount of labels, seed and arm, with the arm's choice."""
    return [
        _cell(context, split, name, arm, n, seed, choices[name, arm.name])
        for name, measure in context.suite.measures.items()
        if measures is None or name in measures
        for n in measure.n_labelled
        for seed in measure.seed_numbers()
        for arm in arms
    ]


def labels_of(cell: Cell) -> tuple[str, frozenset[str]]:
    """Whose labels a cell learns from, in a test or in a search."""
    return cell.split, frozenset(cell.labelled)


def subset_numbers(cells: Sequence[Cell]) -> dict[tuple[str, frozenset[str]], int]:
    """{labels_of(cell): number of the subset}: the least seed that drew these patients.

    Of few patients two seeds may draw the same; of the whole pool all do. They are one subset: trainings on the same
    labels are no independent repetitions.
    """
    found: dict[tuple[str, frozenset[str]], int] = {}
    for cell in cells:
        labels = labels_of(cell)
        found[labels] = min(cell.seed, found.get(labels, cell.seed))
    return found


def shown(context: Context) -> tuple[str, int, int] | None:
    """(measure, n_labelled, seed) of the cells whose predictions the report shows: the middle of the curve.

    Of the first measure that trains the network, else of the first that keeps pictures; None where none does.
    """
    able = [(name, m) for name, m in context.suite.measures.items() if m.PICTURES]
    if not able:
        return None
    name, measure = next(((name, m) for name, m in able if m.TRAINS), able[0])
    amounts = sorted(measure.n_labelled)
    return name, amounts[(len(amounts) - 1) // 2], measure.seed_numbers()[0]


def picture_rows(context: Context, split: Split) -> tuple[int, ...]:
    """Store rows of the test cases whose predictions are kept: a scan of each patient, when any is to be shown.

    Which of them are extremes is known at the end alone.
    """
    return tuple(context.rows[patient][0] for patient in split.test) if context.suite.pictures else ()


def _cell(context: Context, split: Split, measure: str, arm: Arm, n: int, seed: int, choice: Choice) -> Cell:
    labelled = labelled_subset(split.pool, n, context.suite.seed, seed, context.strata)
    pictures = picture_rows(context, split) if (measure, n, seed) == shown(context) else ()
    return Cell(measure, arm, n, seed, labelled, split.test, TEST, choice, pictures)
