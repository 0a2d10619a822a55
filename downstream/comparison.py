"""From results.csv to what a report says: each arm's score, and its paired difference to scratch, point by point.

Aggregation: cases -> patient, then classes -> one score a patient, then patients, training replicates and, where a
method has at least three, pre-training runs -> the set. Differences are taken class by class, patient by patient and
replicate by replicate before anything is averaged.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from downstream.jackknife import pseudo_rows
from downstream.permutation import Permutation, holm, permutation_test
from downstream.statistics import (
    FEWEST_RUNS,
    LEVEL,
    Array,
    Estimate,
    complete_block,
    complete_cube,
    estimate,
    estimate_runs,
    p_value,
)
from downstream.tables import (
    SCRATCH,
    SEARCH,
    TEST,
    VALIDATION,
    Scores,
    groups,
    last_step,
    patient_means,
    pool_runs,
    pooled_baselines,
    rows_of_test,
    scores_by_arm,
    split_runs,
    table_of,
)
from downstream.volume_merit import merit, merit_name
from downstream.volume_metrics import PREDICTION, SET_METRICS, TRUTH

MEASURES = {"finetune": "Fine-tuning", "probe": "Linear probe"}
BASELINES = {"finetune": "scratch", "probe": "a random encoder"}  # the arm without pre-training, in words


@dataclass(frozen=True)
class Metric:
    """How a column of numbers is written, which direction is good, and what guessing has (None: it depends)."""

    name: str
    unit: str
    higher_is_better: bool
    decimals: int
    highest: float
    lowest: float = 0.0
    guessing: float | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """The range of a score."""
        return self.lowest, self.highest

    @property
    def span(self) -> tuple[float, float]:
        """The range of a difference of two scores."""
        width = self.highest - self.lowest
        return -width, width


METRICS = {
    "dice": Metric("Dice", "Dice", True, 2, 1.0),
    "nsd": Metric("NSD", "NSD", True, 2, 1.0),
    "hd95": Metric("HD95", "mm HD95", False, 1, math.inf),
    "assd": Metric("ASSD", "mm ASSD", False, 2, math.inf),
    "auroc": Metric("AUROC", "AUROC", True, 2, 1.0, guessing=0.5),
    "ap": Metric("average precision", "average precision", True, 2, 1.0),
    "f1": Metric("F1", "F1", True, 2, 1.0),
    "brier": Metric("Brier score", "Brier score", False, 2, 2.0),
    "ece": Metric("calibration error", "calibration error", False, 2, 1.0),
    "mae": Metric("mean absolute error", "mean absolute error", False, 2, math.inf),
    "rmse": Metric("root mean squared error", "root mean squared error", False, 2, math.inf),
    "pearson": Metric("linear correlation", "linear correlation", True, 2, 1.0, -1.0, 0.0),
    "spearman": Metric("rank correlation", "rank correlation", True, 2, 1.0, -1.0, 0.0),
}


@dataclass(frozen=True)
class Tests:
    """Tests of one difference, beside its interval; a p-value is None where the design gives none.

    `p`: of the crossed model, the one that belongs to the interval; `permutation`: of the sharp null hypothesis, exact;
    both also after Holm over the `family` of comparisons: all arms and amounts of labels of one measure and metric.
    """

    p: float | None
    permutation: Permutation | None
    p_holm: float | None = None
    permutation_holm: float | None = None
    family: int = 1


@dataclass(frozen=True)
class Point:
    """One arm at one number of labelled patients, by one measure and metric.

    `score`: the arm's own mean; `difference`: arm minus baseline, paired; `joint`: the same difference, its
    interval widened (Bonferroni) so that all points of this arm, measure and metric hold together. Both None for a
    baseline, and `tests` with them. `subsets`: distinct labelled subsets; `seeds`: distinct training seeds. `arm` is
    the name of a method where at least three of its pre-training runs are behind the point. `title` of the measure and
    `without`, its arm without pre-training, are what sentences call them where the evaluation says so (measures.json).
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
    tests: Tests | None = None
    title: str = ""
    without: str = ""

    @property
    def is_baseline(self) -> bool:
        return self.arm == self.baseline

    @property
    def of_method(self) -> bool:
        """Whether it says something about the method that made the checkpoints: three pre-training runs or more."""
        return ((self.difference or self.score).runs or 0) >= FEWEST_RUNS

    def verdict(self, joint: bool = False) -> str:
        """ "better", "worse", "not distinguishable" or "no interval", judged by the (joint) interval."""
        return verdict(self.joint if joint else self.difference, self.metric)


def verdict(difference: Estimate | None, metric: str) -> str:
    """What the interval of a difference says: "better", "worse", "not distinguishable" or "no interval"."""
    if difference is None or difference.low is None:
        return "no interval"
    sign = difference.sign() * (1 if METRICS[metric].higher_is_better else -1)
    return {1: "better", -1: "worse", 0: "not distinguishable"}[sign]


def compare(
    results: pd.DataFrame,
    baselines: Mapping[str, str] | None = None,
    level: float = LEVEL,
    pool: bool = True,
) -> list[Point]:
    """All points of the test patients, ordered by measure, metric, n_labelled, baseline first, then arms by name.

    `baselines` {arm: its scratch arm}; by default `scratch`. At least three pre-training runs of a method are one arm
    of its name (`pool` False: never); fewer are kept apart, an arm a run. Metrics of a whole set (AUROC, ...) are
    computed from the predictions for its volumes. Raises ValueError when there is no row of the test patients.
    """
    rows = prepare(results, baselines or {}, pool=pool)
    baselines = pooled_baselines(rows, baselines or {})
    points: list[Point] = []
    for (measure, metric), group in groups(last_step(rows), ["schedule", "metric"]):
        tables = scores_by_arm(group)
        family: list[Point] = []
        for (n, arm), own in sorted(tables.items(), key=lambda item: _order(item[0], baselines)):
            baseline = baselines.get(arm, SCRATCH)
            other = tables.get((n, baseline)) if arm != baseline else None
            compared = sum((m, baseline) in tables for m, a in tables if a == arm)
            family.append(_point(str(measure), str(metric), arm, baseline, n, own, other, compared, level))
        points += _corrected(family)
    measures, metrics = [*MEASURES, *sorted({p.measure for p in points} - set(MEASURES))], list(METRICS)
    return sorted(points, key=lambda p: (measures.index(p.measure), metrics.index(p.metric)))


def prepare(
    results: pd.DataFrame, baselines: Mapping[str, str], metrics: Collection[str] = tuple(METRICS), pool: bool = True
) -> pd.DataFrame:
    """The rows of `metrics` that are compared, all steps: of the test patients, a set's metrics as pseudo-values, arms
    named by pool_runs.

    Raises ValueError when the test patients have no row at all.
    """
    rows = rows_of_test(results, [*METRICS, PREDICTION, TRUTH])
    if rows.empty:
        raise ValueError("results.csv holds no row with split=test: the evaluation has not finished one cell")
    if (rows["metric"] == PREDICTION).any():
        rows = pd.concat([rows, pseudo_rows(rows, metrics)], ignore_index=True)
    rows = rows[rows["metric"].isin(list(metrics))]
    return pool_runs(rows, baselines, FEWEST_RUNS if pool else None)


def _point(
    measure: str,
    metric: str,
    arm: str,
    baseline: str,
    n: int,
    own: Scores,
    other: Scores | None,
    compared: int,
    level: float,
) -> Point:
    about = METRICS[metric]
    score = _inside(estimate_of(own, level, about.limits), metric)
    if other is None:
        return Point(measure, metric, arm, baseline, n, score, own.subsets, own.seeds)
    paired = own.minus(other)
    difference = estimate_of(paired, level, about.span)
    joint = estimate_of(paired, 1 - (1 - level) / compared, about.span)
    return Point(
        measure, metric, arm, baseline, n, score, own.subsets, own.seeds, difference, joint, _tests(paired, difference)
    )


def estimate_of(own: Scores, level: float, limits: tuple[float, float]) -> Estimate:
    """Mean and interval over runs, where they are a factor, replicates and patients."""
    tables = own.patients()
    return estimate(tables[0], level, limits) if own.runs is None else estimate_runs(tables, level, limits)


def _inside(score: Estimate, metric: str) -> Estimate:
    """An arm's own score of a whole set without its interval where that reaches the end of the scale.

    Pseudo-values hardly vary when nearly every volume is right: at an AUROC of 0.97 such an interval covers 72 to 82 %
    (docs/statistics.md). Differences of two arms do not suffer from it.
    """
    if metric not in SET_METRICS or score.high is None or score.low is None:
        return score
    lowest, highest = METRICS[metric].limits
    if lowest < score.low and score.high < highest:
        return score
    return replace(score, low=None, high=None, reason="the scale ends within reach, where it would be too short")


def _tests(paired: Scores, difference: Estimate) -> Tests:
    """Both tests of the cells that the interval rests on."""
    values = complete_values(paired)
    if values.size == 0:
        return Tests(None, None)
    return Tests(None if difference.low is None else p_value(values), permutation_test(values))


def complete_values(own: Scores) -> Array:
    """The cells without missing ones, (S, P) or (R, S, P): those that an interval rests on."""
    tables = own.patients()
    return complete_block(tables[0]).to_numpy() if own.runs is None else complete_cube(tables)


def _corrected(family: Sequence[Point]) -> list[Point]:
    """Holm over all comparisons of one measure and metric."""
    tested = [p.tests for p in family]
    plain = holm([t.p if t else None for t in tested])
    exact = holm([t.permutation.p if t and t.permutation else None for t in tested])
    count = sum(t is not None for t in tested)
    return [
        replace(point, tests=replace(t, p_holm=p, permutation_holm=q, family=count)) if t else point
        for point, t, p, q in zip(family, tested, plain, exact)
    ]


def _order(key: tuple[int, str], baselines: Mapping[str, str]) -> tuple[int, bool, str]:
    n, arm = key
    return n, arm != baselines.get(arm, SCRATCH), arm


def patient_scores(results: pd.DataFrame, measure: str, metric: str, n_labelled: int) -> pd.DataFrame:
    """Mean over replicates, a row a patient and a column an arm: what case pictures are chosen by."""
    rows = results[
        (results["split"] == TEST)
        & (results["schedule"] == measure)
        & (results["metric"] == metric)
        & (results["n_labelled"] == n_labelled)
    ]
    rows = last_step(split_runs(rows))
    columns = {
        str(arm): complete_block(patient_means(table_of(cell))).mean(axis=0) for arm, cell in rows.groupby("arm")
    }
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class Trial:
    """One choice of settings tried for one arm: its score on the validation patients, and whether it was taken.

    `choice`: in words, "lr=0.01" or "lr=0.01 schedule=constant". `score`: what the search went by, more is better; its
    name in `scored_by`: mean Dice, or downstream.volume_merit.
    """

    measure: str
    arm: str
    n_labelled: int
    choice: str
    seeds: int
    patients: int
    score: float
    scored_by: str
    taken: bool


def search(results: pd.DataFrame) -> list[Trial]:
    """The searches, from the validation rows: every arm and choice, the best of each arm marked; choices in order."""
    rows = results[(results["split"] == VALIDATION) & results["schedule"].str.contains(SEARCH, regex=True)]
    rows = last_step(rows[rows["metric"].isin(["dice", PREDICTION, TRUTH])])
    found: list[Trial] = []
    for (schedule, arm, n), cell in groups(rows, ["schedule", "arm", "n_labelled"]):
        measure, _, choice = str(schedule).partition(" ")
        if (cell["metric"] == PREDICTION).any():
            score, scored_by = merit(cell), merit_name(cell)
        else:
            score, scored_by = float(np.nanmean(patient_means(table_of(cell)).to_numpy())), METRICS["dice"].name
        seeds, patients = int(cell["seed"].nunique()), int(cell["patient"].nunique())
        found.append(Trial(measure, str(arm), int(n), choice, seeds, patients, score, scored_by, False))
    best: dict[tuple[str, str], Trial] = {}
    for trial in found:  # of equals the first, as downstream.plan.best_choices takes it
        key = trial.measure, trial.arm
        if key not in best or trial.score > best[key].score:
            best[key] = trial
    found = [replace(trial, taken=trial is best[trial.measure, trial.arm]) for trial in found]
    return sorted(found, key=lambda t: (t.measure, t.n_labelled, t.arm != SCRATCH, t.arm))  # stable: choices in order
