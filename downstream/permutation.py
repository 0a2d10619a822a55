"""A permutation test of the paired comparison, and Holm's correction for a family of comparisons.

The exchangeable unit is the training replicate: a labelled subset with its seed, drawn anew and independently each
time. Within a replicate one training started from random weights and one (or one a pre-training run) from the weights
that are judged. If the start makes no difference, which of them is called scratch is arbitrary: for one run swapping
the two flips the sign of the replicate's mean difference. Patients are not exchanged: all scores of a training share
its luck.

What is tested is the sharp null hypothesis that on these test patients the start makes no difference at all; the test
is then exact, whatever the distribution. It does NOT test that differences average to zero over other patients: the
crossed interval and its p-value do (downstream.statistics).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl3d.seeding import numpy_generator

MOST = 2**16  # arrangements that are all looked at; of more, DRAWS at random
DRAWS = 9_999
UNIT = "training replicate (labelled subset and seed)"


@dataclass(frozen=True)
class Permutation:
    """A two-sided p-value; `smallest`: the least that this design could have given, whatever the scores.

    `arrangements`: how many were looked at, the observed one among them; `exact`: whether these were all.
    """

    p: float
    smallest: float
    arrangements: int
    exact: bool
    replicates: int
    unit: str = UNIT


def permutation_test(differences: ArrayLike, seed: int = 0) -> Permutation:
    """Test a complete table of differences to scratch, (S replicates, P patients) or (R runs, S, P).

    The statistic is the mean difference. With R runs each replicate has R + 1 trainings, any of which may be called
    scratch: (R + 1)^S arrangements. Exact when there are few, otherwise Monte Carlo with the observed arrangement
    counted in (Phipson and Smyth, SAGMB 9, 2010), so that p is never zero and the test stays valid.
    Raises ValueError for missing or infinite values.
    """
    table = np.asarray(differences, dtype=np.float64)
    table = table[None] if table.ndim == 2 else table
    if not np.isfinite(table).all() or table.size == 0:
        raise ValueError("a permutation test needs a complete table of differences")
    moves = _moves(table.mean(-1))
    replicates, choices = moves.shape
    total = choices**replicates
    exact = total <= MOST
    if exact:
        statistics = np.zeros(1)
        for row in moves:
            statistics = (statistics[:, None] + row[None, :]).ravel()
    else:
        generator = numpy_generator(seed, "permutation", replicates, choices)
        drawn = generator.integers(0, choices, (DRAWS, replicates))
        statistics = np.append(moves[np.arange(replicates), drawn].sum(1), moves[:, 0].sum())
    observed = abs(moves[:, 0].sum())
    extreme = np.abs(statistics) >= observed - 1e-12 * np.abs(moves).sum()
    fewest = 2 if choices == 2 else 1  # two arms: the mirror image is always as extreme
    smallest = max(fewest / total, 0.0 if exact else 1 / (DRAWS + 1))
    return Permutation(float(extreme.mean()), min(smallest, 1.0), len(statistics), exact, replicates)


def _moves(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """(S, R + 1): what replicate s adds to the statistic when training j is called scratch; j = 0 is what happened.

    `means` (R, S): each run's mean difference to the true scratch, whose own is 0.
    """
    scores = np.concatenate([np.zeros((1, means.shape[1])), means])  # (R + 1, S)
    others = (scores.sum(0) - scores) / (len(scores) - 1)
    return (others - scores).T


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down p-values (Scandinavian Journal of Statistics 6, 1979); None stays None but is no member.

    Rejecting what is below 0.05 keeps the chance of a single false rejection in the family below 0.05, whatever the
    dependence between its members.
    """
    known = sorted((value, i) for i, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, i) in enumerate(known):
        largest = max(largest, min((len(known) - rank) * value, 1.0))
        adjusted[i] = largest
    return adjusted
