"""Mean and deviation by which features are standardised."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CONSTANT = 1e-8  # a deviation up to here is none


def moments(
    x: NDArray[Any], weight: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean, deviation), each (F,) float64, of features (N,F) whose rows count by `weight` (N,), all alike by default.

    The deviation of a constant feature is infinite: it says nothing, and divided by it becomes 0.
    """
    if weight is None:
        mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    else:
        mean = np.average(x, axis=0, weights=weight)
        deviation = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight))
    return mean, np.where(deviation > CONSTANT, deviation, np.inf)
