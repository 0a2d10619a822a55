"""Where a curve of scores reaches a target, with an interval over all that was drawn: runs, replicates, patients.

Both the labels that scratch needs for an arm's score and the steps an arm needs for a share of scratch's score are such
crossings. The estimate is read off a monotone (isotonic) fit of the mean curve. The interval inverts the crossed
interval (Fieller, JRSS B 16, 1954): a place x is compatible with the data when the interval of curve(x) - target, taken
replicate by replicate and patient by patient, does not exclude zero on the side that matters. So it covers as often as
that interval does, may be open on either side, and needs no bootstrap, whose percentiles are too short with few seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from downstream.statistics import LEVEL, half_widths_of_any

Array = NDArray[np.float64]
BELOW, INSIDE, BEYOND = -1, 0, 1  # where an end lies: before the first x, between the first and the last, past the last
FINE = 64  # places looked at between two neighbouring x; ends are interpolated between them


@dataclass(frozen=True)
class Place:
    """A position on the axis of x; `x` is the end of the range when `side` says that the place lies outside it."""

    x: float
    side: int = INSIDE


@dataclass(frozen=True)
class Crossing:
    """Where a rising curve reaches a target. `low` and `high` are None when no honest interval exists."""

    estimate: Place
    low: Place | None
    high: Place | None


def isotonic(values: ArrayLike) -> Array:
    """The non-decreasing sequence nearest to `values` in squares: pool adjacent violators (Ayer et al., 1955)."""
    blocks: list[tuple[float, int]] = []
    for value in np.asarray(values, dtype=np.float64):
        mean, size = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), size + count
        blocks.append((mean, size))
    return np.concatenate([np.full(size, mean) for mean, size in blocks])


def reach(x: Sequence[float], curve: ArrayLike, target: float) -> Place:
    """The first place where the monotone fit of `curve` over increasing `x`, linear in between, is at the target."""
    fitted = isotonic(curve)
    if target > fitted[-1]:
        return Place(float(x[-1]), BEYOND)
    if target < fitted[0]:
        return Place(float(x[0]), BELOW)
    after = int(np.argmax(fitted >= target))
    if after == 0:
        return Place(float(x[0]))
    share = (target - fitted[after - 1]) / (fitted[after] - fitted[after - 1])
    return Place(float(x[after - 1] + share * (x[after] - x[after - 1])))


def crossing(x: Sequence[float], differences: Array, level: float = LEVEL, interval: bool = True) -> Crossing:
    """Where curve - target rises through zero.

    `differences` (K, S, P) or (K, R, S, P): the complete table of curve - target at each of K increasing x; a constant
    target has to be subtracted too. Between two x every cell is taken to be linear. `interval` False: the estimate
    alone (too few runs, replicates or patients).

    The low end is the first x at which the curve is not surely below the target, the high end the last x at which it is
    not surely above. The estimate always lies between: a fit that pools several x may otherwise leave them.
    """
    differences = np.asarray(differences, dtype=np.float64)
    means = differences.reshape(len(differences), -1).mean(-1)
    estimate = reach(x, means, 0.0)
    if not interval:
        return Crossing(estimate, None, None)
    places, bounds = _bounds(np.asarray(x, dtype=np.float64), differences, level)
    low = _first(places, bounds[1])
    high = _last(places, bounds[0])
    return Crossing(estimate, min(low, estimate, key=_order), max(high, estimate, key=_order))


def _bounds(x: Array, differences: Array, level: float) -> tuple[Array, Array]:
    """Places on a fine grid over x, and there the interval's bounds (2, G) of curve - target."""
    places, low, high = [], [], []
    shares = np.arange(FINE) / FINE
    runs = differences.ndim == 4
    for k in range(max(len(x) - 1, 1)):
        after = min(k + 1, len(x) - 1)
        own = shares if k < len(x) - 2 else np.append(shares, 1.0)
        weights = own.reshape(-1, *[1] * (differences.ndim - 1))
        mean, half = half_widths_of_any((1 - weights) * differences[k] + weights * differences[after], level, runs)
        places.append(x[k] + own * (x[after] - x[k]))
        low.append(mean - half)
        high.append(mean + half)
    return np.concatenate(places), np.stack([np.concatenate(low), np.concatenate(high)])


def _first(places: Array, upper: Array) -> Place:
    """The first place where the curve is not surely below the target: the upper bound is at zero or above."""
    possible = upper >= 0
    if not possible.any():
        return Place(float(places[-1]), BEYOND)
    i = int(np.argmax(possible))
    return Place(float(places[0]), BELOW) if i == 0 else Place(_zero(places, upper, i - 1))


def _last(places: Array, lower: Array) -> Place:
    """The last place where the curve is not surely above the target: the lower bound is at zero or below."""
    possible = lower <= 0
    if not possible.any():
        return Place(float(places[0]), BELOW)
    i = len(places) - 1 - int(np.argmax(possible[::-1]))
    return Place(float(places[-1]), BEYOND) if i == len(places) - 1 else Place(_zero(places, lower, i))


def _zero(places: Array, bound: Array, i: int) -> float:
    """Where the bound, linear between places i and i + 1, is zero."""
    share = bound[i] / (bound[i] - bound[i + 1])
    return float(places[i] + share * (places[i + 1] - places[i]))


def _order(place: Place) -> tuple[int, float]:
    return place.side, place.x
