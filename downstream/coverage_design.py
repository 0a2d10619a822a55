"""What intervals hold when a study is not as the model has it.

Subsets that overlap, curves scored at few steps, settings that were searched for: limits of the design, which no
quantile mends; docs/statistics.md states them with these tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from downstream.coverage_tests import NOISE, markdown_table, open_ends
from downstream.crossing import crossing
from downstream.efficiency import SHARE
from downstream.permutation import permutation_test
from downstream.statistics import half_widths, p_value
from ssl3d.seeding import numpy_generator

POOLS = ((63, 4), (63, 16), (30, 16), (300, 64), (300, 256))  # (patients of a pool, labelled patients of a subset)
# Steps at which a training of 100 is scored: few, and one in ten.
MARKS = {"25, 50, 100": (25, 50, 100), "every 10": tuple(range(10, 101, 10))}
PACES = {"fast": 15.0, "middling": 21.0, "slow": 30.0}  # steps in which what is left to learn falls to 1 / e
SEARCH_NOISE = 0.02  # standard deviation of a score of a search with one seed
HEIGHT, UNLEARNT = 0.75, 0.9  # the score without end, and the share of it that is missing at step 0


class Held(NamedTuple):
    """Shares of simulated studies whose interval holds the mean over subsets of this pool, and of other pools."""

    this_pool: float
    other_pools: float


def overlapping(
    studies: int, replicates: int, patients: int, pool: int, labelled: int, variances: Sequence[float], seed: int
) -> Held:
    """Subsets of `labelled` of a `pool`, each with its seed, that meet every test patient.

    A labelled patient is worth a number, a subset the mean of its patients'. `variances`: of a subset's worth where the
    pool is without end, of the seed, and of the residual.
    """
    generator = numpy_generator(seed, "pool", pool, labelled, replicates, patients)
    of_subset, of_seed, residual = (np.sqrt(v) for v in variances)
    worth = of_subset * np.sqrt(labelled) * generator.standard_normal((studies, pool))
    tables = np.empty((studies, replicates, patients))
    for i in range(studies):
        drawn = [worth[i, generator.permutation(pool)[:labelled]].mean() for _ in range(replicates)]
        tables[i] = np.asarray(drawn)[:, None] + of_seed * generator.standard_normal((replicates, 1))
    tables += residual * generator.standard_normal(tables.shape)
    mean, half = half_widths(tables)
    return Held(float((np.abs(mean - worth.mean(1)) <= half).mean()), float((np.abs(mean) <= half).mean()))


def learning_speed(
    studies: int, replicates: int, patients: int, pace: float, marks: Sequence[int], seed: int
) -> tuple[float, float, float]:
    """(coverage, mean estimate, truth) of the step at which a saturating curve has SHARE of its own final score."""
    generator = numpy_generator(seed, "speed", replicates, patients, str(pace), len(marks))
    curve = HEIGHT * (1 - UNLEARNT * np.exp(-np.asarray(marks) / pace))
    target = SHARE * curve[-1]
    truth = -pace * float(np.log((1 - target / HEIGHT) / UNLEARNT))
    of_replicate, of_both, of_patient, residual = NOISE
    held, places = 0, []
    for _ in range(studies):
        shared = of_replicate * generator.standard_normal((1, replicates, 1))
        shared = shared + of_patient * generator.standard_normal((1, 1, patients))
        own = of_both * generator.standard_normal((len(marks), replicates, 1))
        noise = residual * generator.standard_normal((len(marks), replicates, patients))
        scores = curve[:, None, None] + shared + own + noise
        found = crossing([float(m) for m in marks], scores - SHARE * scores[-1:])
        low, high = open_ends(found)
        held += low <= truth <= high
        places.append(found.estimate.x)
    return held / studies, float(np.mean(places)), truth


def searched(
    studies: int, replicates: int, patients: int, gap: float, noise: float, seed: int
) -> tuple[float, float]:
    """Shares of studies without a difference of the start in which (the crossed model, the permutation test) finds one.

    Two rates, the second truly better by `gap`; each arm takes the one that scores best in its own search, whose scores
    have a standard deviation of `noise`.
    """
    generator = numpy_generator(seed, "search", replicates, patients, str(gap), str(noise))
    of_replicate, _, _, residual = NOISE
    found = np.zeros(2)
    for _ in range(studies):
        tables = []
        for _ in range(2):
            taken = int(np.argmax(np.array([0.0, gap]) + noise * generator.standard_normal(2)))
            own = of_replicate * generator.standard_normal((replicates, 1))
            tables.append(gap * taken + own + residual * generator.standard_normal((replicates, patients)))
        table = tables[0] - tables[1]
        p = p_value(table)
        found += [p is not None and p <= 0.05, permutation_test(table).p <= 0.05]
    return float(found[0] / studies), float(found[1] / studies)


def markdown_searches(studies: int, replicates: Sequence[int], patients: Sequence[int], seed: int) -> str:
    """Differences found where there is none, in per cent, by how much a rate matters and how many seeds search it."""
    rows = []
    for s in replicates:
        for p in patients:
            for gap in (0.0, 0.01, 0.02):
                for seeds in (1, 5):
                    crossed, exact = searched(studies, s, p, gap, SEARCH_NOISE / seeds**0.5, seed)
                    rows.append([str(s), str(p), f"{gap:g}", str(seeds), f"{100 * crossed:.1f}", f"{100 * exact:.1f}"])
    head = ["seeds", "patients", "the better rate is better by", "seeds of the search", "crossed p", "permutation p"]
    return markdown_table(head, rows)


def markdown_pools(studies: int, replicates: Sequence[int], patients: Sequence[int], seed: int) -> str:
    """Coverage in per cent where subsets overlap, for subset and seed of equal and of unequal variance."""
    rows = []
    for s in replicates:
        for p in patients:
            for pool, labelled in POOLS:
                even = overlapping(studies, s, p, pool, labelled, (0.5, 0.5, 1.0), seed)
                uneven = overlapping(studies, s, p, pool, labelled, (1.0, 0.1, 1.0), seed)
                cells = (even.this_pool, even.other_pools, uneven.this_pool, uneven.other_pools)
                rows.append([str(s), str(p), f"{labelled} of {pool}", *(f"{100 * v:.1f}" for v in cells)])
    head = ["seeds", "patients", "labelled of pool", "this pool; subset varies as seed", "other pools",
            "this pool; subset ten times as much", "other pools"]  # fmt: skip
    return markdown_table(head, rows)


def markdown_speed(studies: int, replicates: Sequence[int], patients: Sequence[int], seed: int) -> str:
    """The true step, the mean of what is found, and coverage in per cent, by how a training was scored."""
    rows = []
    for s in replicates:
        for p in patients:
            for name, pace in PACES.items():
                for scored, marks in MARKS.items():
                    held, place, truth = learning_speed(studies, s, p, pace, marks, seed)
                    cells = (f"{truth:.1f}", f"{place:.1f}", f"{100 * held:.1f}")
                    rows.append([str(s), str(p), name, scored, *cells])
    return markdown_table(["seeds", "patients", "learns", "scored after steps", "true step", "found", "covered"], rows)
