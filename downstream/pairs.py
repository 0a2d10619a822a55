"""Arms against each other: what their differences to scratch leave open, which of two is better.

Both were trained on the same labelled patients with the same seeds and scored on the same test patients, so the
difference is paired like that to scratch. Intervals of two arms that overlap say nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import pandas as pd

from downstream.comparison import METRICS, complete_values, estimate_of, prepare, verdict
from downstream.permutation import holm
from downstream.statistics import LEVEL, Estimate, p_value
from downstream.tables import SCRATCH, Scores, groups, last_step, pooled_baselines, scores_by_arm


@dataclass(frozen=True)
class Pair:
    """`one` minus `other`, two arms of a network, neither scratch, at one number of labelled patients.

    `p`: of the crossed model; `p_holm`: after Holm over the `family`, all pairs and amounts of labels of the measure.
    """

    measure: str
    metric: str
    one: str
    other: str
    n_labelled: int
    difference: Estimate
    p: float | None
    p_holm: float | None = None
    family: int = 1

    def verdict(self) -> str:
        """Of `one`: "better", "worse", "not distinguishable" or "no interval"."""
        return verdict(self.difference, self.metric)

    def better(self) -> str | None:
        """The arm that is better by the interval, or None."""
        return {"better": self.one, "worse": self.other}.get(self.verdict())


def pairs(
    results: pd.DataFrame, baselines: Mapping[str, str] | None = None, metric: str = "dice", level: float = LEVEL
) -> list[Pair]:
    """All pairs of arms that share a baseline, by measure, amount of labels and name.

    Runs of two methods are paired in the order of their seeds, which is as good as any: they were drawn apart. A
    checkpoint against a method is held fixed. Methods of unequal numbers of runs, each several, are left out.
    """
    rows = prepare(results, baselines or {}, [metric])
    known = pooled_baselines(rows, baselines or {})
    starts = {SCRATCH, *known.values()}  # arms without pre-training
    found: list[Pair] = []
    for (measure,), group in groups(last_step(rows.sort_values("pretrain_seed", kind="stable")), ["schedule"]):
        tables = {key: own for key, own in scores_by_arm(group).items() if key[1] not in starts}
        family = []
        for n in sorted({n for n, _ in tables}):
            arms = sorted(arm for m, arm in tables if m == n)
            for one, other in combinations(arms, 2):
                if known.get(one, SCRATCH) != known.get(other, SCRATCH):
                    continue
                paired = between(tables[n, one], tables[n, other])
                if paired is not None:
                    family.append(_pair(str(measure), metric, one, other, n, paired, level))
        corrected = holm([pair.p for pair in family])
        count = sum(pair.p is not None for pair in family)
        found += [replace(pair, p_holm=p, family=count) for pair, p in zip(family, corrected)]
    return found


def between(one: Scores, other: Scores) -> Scores | None:
    """`one` minus `other`, cell by cell and, where both have them, run by run; None for unequal numbers of runs."""
    if len(other.tables) == 1:
        return one.minus(other)
    if len(one.tables) == 1:
        turned = other.minus(one)
        return replace(turned, tables=tuple(-table for table in turned.tables))
    if len(one.tables) != len(other.tables):
        return None
    return replace(one, tables=tuple(a - b for a, b in zip(one.tables, other.tables)))


def _pair(measure: str, metric: str, one: str, other: str, n: int, paired: Scores, level: float) -> Pair:
    difference = estimate_of(paired, level, METRICS[metric].span)
    p = None if difference.low is None else p_value(complete_values(paired))
    return Pair(measure, metric, one, other, n, difference, p)
