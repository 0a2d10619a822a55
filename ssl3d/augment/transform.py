"""What the transforms of a Compose have in common: their base class and the checks of their ranges."""

from __future__ import annotations

from collections.abc import Sequence


class Transform:
    """Anything that may stand in `Compose(transforms=[...])`: one SpatialTransform, any IntensityTransforms."""


def check_probability(key: str, value: float) -> float:
    """`value` when it lies in [0, 1]. Raises ValueError naming `key`."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{key}={value}: a probability must lie between 0 and 1")
    return float(value)


def check_range(key: str, value: Sequence[float], minimum: float, maximum: float = float("inf")) -> tuple[float, float]:
    """(low, high) with minimum <= low <= high <= maximum. Raises ValueError naming `key`."""
    if len(value) != 2 or not minimum <= value[0] <= value[1] <= maximum:
        limits = f"at least {minimum:g}" if maximum == float("inf") else f"between {minimum:g} and {maximum:g}"
        raise ValueError(f"{key}={list(value)}: write [low, high] with low <= high, both {limits}")
    return float(value[0]), float(value[1])
