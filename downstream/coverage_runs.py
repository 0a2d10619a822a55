"""Does the interval over pre-training runs cover? Simulated studies of runs, replicates, patients, interactions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from downstream.statistics import LEVEL
from downstream.three_factor import (
    EFFECTS,
    PATIENT,
    RUN,
    Effect,
    degrees,
    half_widths_of,
    mean_squares,
    parts,
    satterthwaite,
)
from ssl3d.seeding import numpy_generator

Tables = NDArray[np.float64]
Sizes = tuple[int, int, int]
Squares = dict[Effect, Tables]
Width = Callable[[Squares, Sizes], Tables]

# variances of run, seed, patient, run x seed, run x patient, seed x patient, residual (three_factor.EFFECTS)
RATIOS: dict[str, tuple[float, ...]] = {
    "no run effect at all": (0, 0.1, 1, 0, 0, 0.3, 1),
    "no run effect, seeds as large as patients": (0, 1, 1, 0, 0, 1, 1),
    "a little of everything": (0.1, 0.1, 0.5, 0.1, 0.1, 0.5, 1),
    "runs and seeds alike": (0.3, 0.3, 1, 0.1, 0.1, 0.5, 1),
    "all alike": (1, 1, 1, 0.3, 0.3, 0.3, 1),
    "all alike, no interactions": (1, 1, 1, 0, 0, 0, 0.3),
    "runs and patients": (1, 0.1, 1, 0.1, 0.3, 0.1, 0.3),
    "runs dominate": (3, 0.1, 0.1, 0.1, 0.1, 0.1, 1),
    "runs alone": (1, 0, 0, 0, 0, 0.3, 0.3),
}


def simulate(studies: int, sizes: Sizes, variances: Sequence[float], generator: np.random.Generator) -> Tables:
    """Tables (studies, R, S, P) of a study whose true mean is 0: Gaussian effects with the given variances."""
    tables = np.zeros((studies, *sizes))
    for effect, variance in zip(EFFECTS, variances):
        shape = [size if axis in effect else 1 for axis, size in enumerate(sizes)]
        tables += np.sqrt(variance) * generator.standard_normal((studies, *shape))
    return tables


def width_ours(squares: Squares, sizes: Sizes) -> Tables:
    """three_factor.half_widths_of."""
    return half_widths_of(squares, sizes, LEVEL)


def width_componentwise(squares: Squares, sizes: Sizes) -> Tables:
    """Every part with the t quantile of its own degrees of freedom, as in the two-factor interval."""
    freedom, found = degrees(sizes), parts(squares)
    squared = sum(found[effect] * stats.t.ppf(0.5 + LEVEL / 2, freedom[effect]) ** 2 for effect in EFFECTS)
    return np.asarray(np.sqrt(squared / np.prod(sizes)))


def width_satterthwaite(squares: Squares, sizes: Sizes) -> Tables:
    """One t quantile for the sum."""
    found = parts(squares)
    variance = sum((found[effect] for effect in EFFECTS), start=np.zeros_like(squares[EFFECTS[0]]))
    freedom = satterthwaite(squares, found, variance, degrees(sizes))
    return np.asarray(stats.t.ppf(0.5 + LEVEL / 2, freedom) * np.sqrt(variance / np.prod(sizes)))


def width_without_runs(squares: Squares, sizes: Sizes) -> Tables:
    """The two-factor interval of the mean over runs, as if these runs were all there could be: runs left out."""
    r, s, p = sizes
    by_replicate, by_patient, residual = squares[(1,)], squares[(PATIENT,)], squares[(1, PATIENT)]
    quantile = {n: stats.t.ppf(0.5 + LEVEL / 2, n) ** 2 for n in (s - 1, p - 1, (s - 1) * (p - 1))}
    squared = (
        np.maximum(by_replicate - residual, 0) * quantile[s - 1]
        + np.maximum(by_patient - residual, 0) * quantile[p - 1]
        + residual * quantile[(s - 1) * (p - 1)]
    )
    return np.asarray(np.sqrt(squared / (r * s * p)))


def width_over_runs(squares: Squares, sizes: Sizes) -> Tables:
    """A t interval over the runs' means, as if seeds and patients had no luck of their own."""
    return np.asarray(stats.t.ppf(0.5 + LEVEL / 2, sizes[0] - 1) * np.sqrt(squares[(RUN,)] / np.prod(sizes)))


WIDTHS: dict[str, Width] = {
    "runs ignored": width_without_runs,
    "t over runs alone": width_over_runs,
    "Satterthwaite": width_satterthwaite,
    "component-wise": width_componentwise,
    "ours": width_ours,
}


def coverage(studies: int, sizes: Sizes, variances: Sequence[float], seed: int) -> dict[str, float]:
    """Share of simulated studies whose 95 % interval holds the true mean, for each of WIDTHS, on the same studies."""
    generator = numpy_generator(seed, "coverage runs", *sizes, *(str(v) for v in variances))
    held = dict.fromkeys(WIDTHS, 0)
    chunk = max(1, 2_000_000 // int(np.prod(sizes)))  # tables at a time: memory
    for start in range(0, studies, chunk):
        tables = simulate(min(chunk, studies - start), sizes, variances, generator)
        mean, squares = mean_squares(tables)
        for name, width in WIDTHS.items():
            held[name] += int((np.abs(mean) <= width(squares, sizes)).sum())
    return {name: count / studies for name, count in held.items()}


def markdown(studies: int, replicates: Sequence[int], patients: Sequence[int], runs: Sequence[int], seed: int) -> str:
    """The coverage of every interval as a Markdown table, a row a design, in per cent."""
    head = ["runs", "seeds", "patients", "variances", *WIDTHS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in runs:
        for s in replicates:
            for p in patients:
                for name, ratio in RATIOS.items():
                    found = coverage(studies, (r, s, p), ratio, seed)
                    cells = " | ".join(f"{100 * value:.1f}" for value in found.values())
                    lines.append(f"| {r} | {s} | {p} | {name} | {cells} |")
    return "\n".join(lines) + "\n"
