"""The crossed interval with pre-training runs as a third random factor: mean squares, variances and half-widths.

The model is d[r, s, p] = mu + R_r + S_s + P_p + RS_rs + RP_rp + SP_sp + E_rsp with independent effects of the
pre-training run r, the training replicate s (labelled subset and seed), the patient p and all their interactions. d is
the score of run r minus that of scratch, which has no runs: what scratch adds lies in S, P and SP, shared by all runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]
RUN, REPLICATE, PATIENT = 0, 1, 2  # the last three axes of a table (..., R, S, P)
Effect = tuple[int, ...]
MAINS: tuple[Effect, ...] = ((RUN,), (REPLICATE,), (PATIENT,))
PAIRS: tuple[Effect, ...] = ((RUN, REPLICATE), (RUN, PATIENT), (REPLICATE, PATIENT))
RESIDUAL: Effect = (RUN, REPLICATE, PATIENT)
EFFECTS = (*MAINS, *PAIRS, RESIDUAL)
COMPONENTWISE = 0.25  # its share in the half-width, the rest is Satterthwaite's (docs/statistics.md says why)


def degrees(sizes: tuple[int, int, int]) -> dict[Effect, int]:
    """Degrees of freedom of each effect in a table of R runs, S replicates and P patients."""
    return {effect: int(np.prod([sizes[axis] - 1 for axis in effect])) for effect in EFFECTS}


def mean_squares(tables: ArrayLike) -> tuple[Array, dict[Effect, Array]]:
    """Grand mean and the mean square of each effect of complete tables (..., R, S, P), all sizes >= 2."""
    tables = np.asarray(tables, dtype=np.float64)
    sizes = tables.shape[-3:]
    freedom = degrees((sizes[0], sizes[1], sizes[2]))
    margins: dict[Effect, Array] = {(): tables.mean((-3, -2, -1), keepdims=True)}
    for effect in EFFECTS:
        others = tuple(axis - 3 for axis in RESIDUAL if axis not in effect)
        margins[effect] = tables.mean(others, keepdims=True)
    found = {}
    for effect in EFFECTS:
        deviation = sum(
            (-1.0) ** (len(effect) - size) * margins[part]
            for size in range(len(effect) + 1)
            for part in combinations(effect, size)
        )
        repeats = np.prod([sizes[axis] for axis in RESIDUAL if axis not in effect])
        found[effect] = repeats * np.sum(np.square(deviation), axis=(-3, -2, -1)) / freedom[effect]
    return margins[()][..., 0, 0, 0], found


def parts(squares: Mapping[Effect, Array]) -> dict[Effect, Array]:
    """What each effect adds to (R S P) times the variance of the mean, never negative.

    From the bottom up: an interaction is its mean square less the residual's, a main effect its mean square less the
    residual and the interactions that it takes part in. What comes out negative counts as zero, and the parts below it
    are NOT reduced in exchange, which errs on the wide side.
    """
    found = {RESIDUAL: squares[RESIDUAL]}
    for pair in PAIRS:
        found[pair] = np.maximum(squares[pair] - squares[RESIDUAL], 0)
    for main in MAINS:
        below = sum((found[pair] for pair in PAIRS if main[0] in pair), start=squares[RESIDUAL])
        found[main] = np.maximum(squares[main] - below, 0)
    return found


def half_widths_of(squares: Mapping[Effect, Array], sizes: tuple[int, int, int], level: float) -> Array:
    """Half-widths from mean squares: a quarter component-wise, three quarters Satterthwaite.

    Component-wise, every part has the t quantile of its own degrees of freedom (as in the two-factor interval):
    with three parts of two degrees of freedom each that is too wide (98.8 % for 95 %). Satterthwaite's one quantile
    for their sum (Biometrics Bulletin 2, 1946) is too short where a few runs or seeds matter most (92.2 %). Never
    shorter than the textbook t interval over the factor of which there is least.
    """
    freedom, found = degrees(sizes), parts(squares)
    count = float(np.prod(sizes))
    separate = sum(found[effect] * quantile(level, freedom[effect]) ** 2 for effect in EFFECTS)
    variance = sum((found[effect] for effect in EFFECTS), start=np.zeros_like(found[RESIDUAL]))
    together = quantile(level, satterthwaite(squares, found, variance, freedom)) * np.sqrt(variance / count)
    half = COMPONENTWISE * np.sqrt(separate / count) + (1 - COMPONENTWISE) * together
    for main in MAINS:
        if sizes[main[0]] == min(sizes):
            half = np.maximum(half, quantile(level, freedom[main]) * np.sqrt(squares[main] / count))
    return np.asarray(half)


def satterthwaite(
    squares: Mapping[Effect, Array], found: Mapping[Effect, Array], variance: Array, freedom: Mapping[Effect, int]
) -> Array:
    """Degrees of freedom of the variance: a sum of mean squares with the signs in which they remain after truncation.

    Never below 1, and 1 where there is no variance at all.
    """
    weights = {effect: np.zeros_like(variance) for effect in EFFECTS}
    weights[RESIDUAL] += 1
    for pair in PAIRS:
        alive = found[pair] > 0
        weights[pair] += alive
        weights[RESIDUAL] -= alive
    for main in MAINS:
        alive = (found[main] > 0).astype(np.float64)
        weights[main] += alive
        weights[RESIDUAL] -= alive
        for pair in PAIRS:
            if main[0] in pair:
                taken = alive * (found[pair] > 0)
                weights[pair] -= taken
                weights[RESIDUAL] += taken
    spread = sum((weights[effect] * squares[effect]) ** 2 / freedom[effect] for effect in EFFECTS)
    return np.maximum(np.divide(variance**2, spread, out=np.ones_like(variance), where=spread > 0), 1.0)


def variances(squares: Mapping[Effect, Array], sizes: tuple[int, int, int]) -> dict[Effect, float]:
    """Method-of-moments variance of each effect of one table, never negative."""
    found = parts(squares)
    shares = {e: float(np.prod([sizes[axis] for axis in RESIDUAL if axis not in e])) for e in EFFECTS}
    return {effect: float(found[effect]) / shares[effect] for effect in EFFECTS}


def quantile(level: float, freedom: ArrayLike) -> Array:
    """Student's t: the half-width of a two-sided `level` interval in standard errors."""
    return np.asarray(stdtrit(freedom, 0.5 + level / 2), dtype=np.float64)
