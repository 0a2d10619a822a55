"""Labels saved and learning speed: how many labels scratch needs for an arm's score, how many steps an arm needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pandas as pd

from downstream.comparison import METRICS, prepare
from downstream.crossing import Crossing, Place, crossing
from downstream.statistics import FEWEST_RUNS, LEVEL, Array, too_few
from downstream.tables import (
    SCRATCH,
    Scores,
    complete_stack,
    groups,
    joined_subsets,
    last_step,
    pooled_baselines,
    scores_by_arm,
)

SHARE = 0.95  # of scratch's final score


@dataclass(frozen=True)
class Reached:
    """Where one arm's comparison reaches its target; `low` and `high` are None without an honest interval (`reason`).

    Of labels saved, places are numbers of labelled patients that scratch needs for the arm's score at `n_labelled`
    (`factor` divides by it); of learning speed, optimiser steps. A place with `side` BELOW or BEYOND lies outside what
    was measured, `first` to `last`; `widest`: the largest gap between two measured places of learning speed.
    """

    measure: str
    metric: str
    arm: str
    baseline: str
    n_labelled: int
    estimate: Place
    low: Place | None
    high: Place | None
    replicates: int
    patients: int
    runs: int | None
    reason: str | None
    first: float
    last: float
    level: float = LEVEL
    widest: float = 0.0

    @property
    def of_method(self) -> bool:
        """Whether at least three pre-training runs are behind it."""
        return (self.runs or 0) >= FEWEST_RUNS

    def factor(self, place: Place) -> float:
        """Labels that scratch needs as a multiple of the arm's own."""
        return place.x / self.n_labelled


@dataclass(frozen=True)
class _Place:
    crossing: Crossing
    level: float
    replicates: int
    patients: int
    runs: int | None
    reason: str | None


def labels_saved(
    results: pd.DataFrame, baselines: Mapping[str, str] | None = None, metric: str = "dice", level: float = LEVEL
) -> list[Reached]:
    """For each arm and amount of labels: with how many labels scratch reaches the same score.

    Scratch's score between two measured amounts is linear in log2(labels), and never falls with more of them. The
    interval is over pre-training runs, replicates and patients (downstream.crossing). Arms whose scratch was measured
    at a single amount have none of it.
    """
    found: list[Reached] = []
    rows = joined_subsets(prepare(results, baselines or {}, [metric]))
    known = pooled_baselines(rows, baselines or {})
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    for (measure,), group in groups(last_step(rows), ["schedule"]):
        tables = scores_by_arm(group)
        for n, arm in sorted(tables, key=lambda key: (key[1], key[0])):
            baseline = known.get(arm, SCRATCH)
            curve = {m: tables[m, baseline] for m in sorted(m for m, a in tables if a == baseline)}
            if arm == baseline or len(curve) < 2:
                continue
            behind = {math.log2(m): tables[n, arm].minus(scratch) for m, scratch in curve.items()}
            place = _reached(behind, -sign, level)  # scratch minus the arm, rising where more labels serve
            about = _moved(place, _amount)
            found.append(Reached(str(measure), metric, arm, baseline, n, first=min(curve), last=max(curve), **about))
    return found


def learning_speed(
    results: pd.DataFrame,
    baselines: Mapping[str, str] | None = None,
    metric: str = "dice",
    level: float = LEVEL,
    share: float = SHARE,
) -> list[Reached]:
    """For each arm, scratch too, and amount of labels: the steps after which it has `share` of scratch's final score.

    Needs rows of two steps or more of a training; between two steps a score is linear. The interval holds the variation
    of scratch's final score too. Raises ValueError for a metric that is better the lower it is: a share of a distance
    is no goal.
    """
    if not METRICS[metric].higher_is_better:
        raise ValueError(f"{METRICS[metric].name} is better the lower it is: learning speed needs a score")
    found: list[Reached] = []
    rows = prepare(results, baselines or {}, [metric])
    known = pooled_baselines(rows, baselines or {})
    for (measure,), group in groups(rows, ["schedule"]):
        final = scores_by_arm(last_step(group))
        by_step = {int(step): scores_by_arm(own) for (step,), own in groups(group.sort_values("step"), ["step"])}
        for n, arm in sorted(final, key=lambda key: (key[1], key[0])):
            baseline = known.get(arm, SCRATCH)
            curve = {step: tables[n, arm] for step, tables in by_step.items() if (n, arm) in tables}
            if len(curve) < 2 or (n, baseline) not in final:
                continue
            behind = {float(step): scores.minus(final[n, baseline], share) for step, scores in curve.items()}
            place = _reached(behind, 1.0, level)
            about = _moved(place, float) | {"widest": float(max(b - a for a, b in pairwise(sorted(curve))))}
            found.append(Reached(str(measure), metric, arm, baseline, n, first=min(curve), last=max(curve), **about))
    return found


def _reached(differences: Mapping[float, Scores], sign: float, level: float) -> _Place:
    """Where sign * (curve - target), {x: its tables}, rises through zero."""
    runs = next(iter(differences.values())).runs
    block = sign * complete_stack([table for scores in differences.values() for table in scores.patients()])
    replicates, patients = block.shape[1:]
    if block.size == 0:
        nowhere = Crossing(Place(math.nan), None, None)
        return _Place(nowhere, level, 0, 0, runs, "no patient was scored under every training seed at every place")
    cube: Array = block if runs is None else block.reshape(len(differences), -1, replicates, patients)
    reason = too_few(runs, replicates, patients)
    return _Place(crossing(list(differences), cube, level, reason is None), level, replicates, patients, runs, reason)


def _moved(place: _Place, scale: Callable[[float], float]) -> dict[str, Any]:
    """Reached's fields about the place, on the scale that is reported."""

    def moved(found: Place | None) -> Place | None:
        return None if found is None else replace(found, x=scale(found.x))

    own = place.crossing
    return {
        "estimate": moved(own.estimate),
        "low": moved(own.low),
        "high": moved(own.high),
        "replicates": place.replicates,
        "patients": place.patients,
        "runs": place.runs,
        "reason": place.reason,
        "level": place.level,
    }


def _amount(logarithm: float) -> float:
    return 2.0**logarithm
