"""From results.csv to what a report says: each arm's score, and its paired difference to scratch, point by point.

Aggregation: cases -> patient, then classes -> one score a patient, then patients and training replicates -> the set.
Differences are taken class by class, patient by patient and replicate by replicate before anything is averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from downstream.results import MEAN_FOREGROUND
from downstream.statistics import LEVEL, Estimate, complete_block, estimate

TEST, VALIDATION = "test", "validation"
SCRATCH = "scratch"
MEASURES = {"finetune": "Fine-tuning", "probe": "Linear probe"}
BASELINES = {"finetune": "scratch", "probe": "a random encoder"}  # the arm without pre-training, in words
SEARCH = " lr="  # "finetune lr=0.01" marks a row of the learning-rate search


@dataclass(frozen=True)
class Metric:
    """How a column of numbers is written and which direction is good."""

    name: str
    unit: str
    higher_is_better: bool
    decimals: int
    highest: float  # the lowest is 0


METRICS = {
    "dice": Metric("Dice", "Dice", True, 2, 1.0),
    "hd95": Metric("HD95", "mm HD95", False, 1, math.inf),
    "assd": Metric("ASSD", "mm ASSD", False, 2, math.inf),
}


@dataclass(frozen=True)
class Point:
    """One arm at one number of labelled patients, by one measure and metric.

    `score`: the arm's own mean; `difference`: arm minus baseline, paired; `joint`: the same difference, its
    interval widened (Bonferroni) so that all points of this arm, measure and metric hold together. Both None for a
    baseline. `subsets`: distinct labelled subsets; `seeds`: distinct training seeds.
    """

    measure: str
    metric: str
    arm: str
    baseline: str
    n_labelled: int
    score: Estimate
    subsets: int
    seeds: int
    difference: Estimate | None = None
    joint: Estimate | None = None

    @property
    def is_baseline(self) -> bool:
        return self.arm == self.baseline

    def verdict(self, joint: bool = False) -> str:
        """ "better", "worse", "not distinguishable" or "no interval", judged by the (joint) interval."""
        found = self.joint if joint else self.difference
        if found is None or found.low is None:
            return "no interval"
        sign = found.sign() * (1 if METRICS[self.metric].higher_is_better else -1)
        return {1: "better", -1: "worse", 0: "not distinguishable"}[sign]


def compare(results: pd.DataFrame, baselines: Mapping[str, str] | None = None, level: float = LEVEL) -> list[Point]:
    """All points of the test patients, ordered by measure, metric, n_labelled, baseline first, then arms by name.

    `baselines` {arm: its scratch arm}; by default `scratch`. Several pre-training runs under one arm name are kept
    apart, an arm a run. Raises ValueError when there is no row of the test patients.
    """
    rows = results[(results["split"] == TEST) & results["metric"].isin(list(METRICS))]
    rows = rows[~rows["schedule"].str.contains(SEARCH, regex=False)]
    if rows.empty:
        raise ValueError("results.csv holds no row with split=test: the evaluation has not finished one cell")
    rows = _last_step(_split_runs(rows))
    baselines = dict(baselines or {})
    points: list[Point] = []
    for (measure, metric), group in _groups(rows, ["schedule", "metric"]):
        tables = {(int(n), str(arm)): _table(cell) for (n, arm), cell in _groups(group, ["n_labelled", "arm"])}
        for (n, arm), table in sorted(tables.items(), key=lambda item: _order(item[0], baselines)):
            baseline = baselines.get(arm, SCRATCH)
            other = tables.get((n, baseline)) if arm != baseline else None
            compared = sum((m, baseline) in tables for m, a in tables if a == arm)
            points.append(_point(str(measure), str(metric), arm, baseline, n, table, other, compared, level))
    measures, metrics = [*MEASURES, *sorted({p.measure for p in points} - set(MEASURES))], list(METRICS)
    return sorted(points, key=lambda p: (measures.index(p.measure), metrics.index(p.metric)))


def _point(
    measure: str,
    metric: str,
    arm: str,
    baseline: str,
    n: int,
    table: pd.DataFrame,
    other: pd.DataFrame | None,
    compared: int,
    level: float,
) -> Point:
    difference = joint = None
    highest = METRICS[metric].highest
    if other is not None:
        paired = _patients(table - other)
        difference = estimate(paired, level, (-highest, highest))
        joint = estimate(paired, 1 - (1 - level) / compared, (-highest, highest))
    subsets, seeds = table.attrs["subsets"], table.attrs["seeds"]
    score = estimate(_patients(table), level, (0.0, highest))
    return Point(measure, metric, arm, baseline, n, score, subsets, seeds, difference, joint)


def _groups(rows: pd.DataFrame, by: list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """groupby, its keys typed as pandas delivers them: plain values."""
    yield from rows.groupby(by, sort=False)


def _strict_mean(grouped: Any) -> Any:
    """Means of a groupby, missing where a value is: averaging what is left would change what is compared."""
    means, counts = grouped.mean(), grouped.count()
    return means.where(counts.eq(grouped.size(), axis=0))


def _order(key: tuple[int, str], baselines: Mapping[str, str]) -> tuple[int, bool, str]:
    n, arm = key
    return n, arm != baselines.get(arm, SCRATCH), arm


def _split_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Give every pre-training run its own arm: a mean over runs would need them as a third random factor."""
    runs = rows.groupby("arm")["run"].nunique()
    several = rows["arm"].isin(runs[runs > 1].index)
    if not several.any():
        return rows
    names = rows["arm"].where(~several, rows["arm"] + " (" + rows["run"].astype(str) + ")")
    return rows.assign(arm=names)


def _last_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Only the end of each training: earlier steps belong to learning speed."""
    last = rows.groupby(["arm", "schedule", "n_labelled"])["step"].transform("max")
    return rows[rows["step"] == last]


def _table(cell: pd.DataFrame) -> pd.DataFrame:
    """One arm and point: scores with a row a replicate and a column a (patient, label), averaged over cases.

    A replicate is a labelled subset when several were drawn (its seeds averaged: they share its labels, so they are no
    independent repetitions), otherwise a seed.
    """
    classes = cell[cell["label"] != MEAN_FOREGROUND]
    cell = cell if classes.empty else classes
    subsets, seeds = int(cell["subset"].nunique()), int(cell["seed"].nunique())
    by = "subset" if subsets > 1 else "seed"
    per_case = cell.assign(value=cell["value"].astype(float)).groupby(
        [by, "seed" if by == "subset" else "subset", "patient", "label"]
    )["value"]
    per_patient = _strict_mean(per_case)
    table = _strict_mean(per_patient.groupby([by, "patient", "label"]))
    wide = table.unstack(["patient", "label"])
    wide.attrs = {"subsets": subsets, "seeds": seeds}
    return wide


def _patients(table: pd.DataFrame) -> pd.DataFrame:
    """Average the classes of each patient; a patient with one class missing in a replicate has no score there."""
    known = table.dropna(axis=1, how="all")  # a class the patient has not got
    return _strict_mean(known.T.groupby(level="patient")).T


def patient_scores(results: pd.DataFrame, measure: str, metric: str, n_labelled: int) -> pd.DataFrame:
    """Mean over replicates, a row a patient and a column an arm: what case pictures are chosen by."""
    rows = results[
        (results["split"] == TEST)
        & (results["schedule"] == measure)
        & (results["metric"] == metric)
        & (results["n_labelled"] == n_labelled)
    ]
    rows = _last_step(_split_runs(rows))
    columns = {str(arm): complete_block(_patients(_table(cell))).mean(axis=0) for arm, cell in rows.groupby("arm")}
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class Trial:
    """One learning rate tried for one arm: its mean score over the validation patients, and whether it was taken."""

    measure: str
    arm: str
    n_labelled: int
    lr: float
    seeds: int
    patients: int
    score: float
    taken: bool


def search(results: pd.DataFrame) -> list[Trial]:
    """The learning-rate search, from the validation rows: every arm and rate, the best of each arm marked."""
    rows = results[(results["split"] == VALIDATION) & results["schedule"].str.contains(SEARCH, regex=False)]
    rows = rows[rows["metric"] == "dice"]
    found: list[Trial] = []
    for (schedule, arm, n), cell in _groups(rows, ["schedule", "arm", "n_labelled"]):
        measure, lr = str(schedule).split(SEARCH)
        score = float(np.nanmean(_patients(_table(cell)).to_numpy()))
        seeds, patients = int(cell["seed"].nunique()), int(cell["patient"].nunique())
        found.append(Trial(measure, str(arm), int(n), float(lr), seeds, patients, score, False))
    best: dict[tuple[str, str], float] = {}
    for trial in found:
        key = trial.measure, trial.arm
        best[key] = max(trial.score, best.get(key, trial.score))
    found = [replace(trial, taken=trial.score == best[trial.measure, trial.arm]) for trial in found]
    return sorted(found, key=lambda t: (t.measure, t.n_labelled, t.arm != SCRATCH, t.arm, t.lr))
