"""Masks that pose as scans: few values and no texture, or the many values of a parcellation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

FEW_VALUES = 16
_MANY_VALUES = 4096  # classes of the largest parcellations
_FLAT = 0.8  # share of equal neighbours in a volume of few values
_OWN_KIND = 0.45  # of the neighbours of a class, those of the same class; the median over classes
_BACKGROUND = 0.05  # share of zeros in a parcellation
_PROBE = 40  # planes looked at before the whole volume is
_MAYBE = 0.3  # what those planes must show of equal neighbours, and of neighbours of their own class
_TABLE = 1 << 16  # integers of a smaller span are counted rather than sorted


def looks_like_labels(array: np.ndarray) -> bool:
    """Whether a volume (Z, Y, X) is a segmentation and no image.

    At most 16 distinct values in flat regions (0.8 of the neighbouring voxels equal), or a parcellation: whole numbers
    with a background of zeros, where voxels of the middle class have their own class for 0.45 of their neighbours. Grey
    values of a scan have others beside them. Graded maps, such as tissue probabilities, are no labels.
    """
    values = np.asarray(array)
    if values.ndim != 3 or values.size == 0:
        return False
    probe = values[:: max(1, len(values) // _PROBE)]
    if (probe[..., 1:] == probe[..., :-1]).mean() < _MAYBE:
        return False
    present = _distinct(probe)
    if not _possible(present) or _own_kind(*_neighbours(probe, present, adjacent=False)) < _MAYBE:
        return False
    present = _distinct(values)
    if not _possible(present) or len(present) < 2:
        return False
    equal, touching, counts = _neighbours(values, present)
    flat = bool(equal.sum() >= _FLAT * (equal.sum() + touching.sum()) / 2)  # a pair of two classes touches both
    if len(present) == 2:
        return flat
    if _own_kind(equal, touching, counts) < _OWN_KIND:
        return False
    if len(present) <= FEW_VALUES:
        return flat
    return bool(present[0] == 0 and counts[0] >= _BACKGROUND * values.size)


def _possible(present: np.ndarray) -> bool:
    """Whether these may be the values of a segmentation."""
    if len(present) > _MANY_VALUES or not np.isfinite(present).all():
        return False
    return len(present) <= FEW_VALUES or bool((present == np.rint(present)).all())


def _own_kind(equal: np.ndarray, touching: np.ndarray, counts: np.ndarray) -> float:
    """Of the neighbours of each value but the most frequent, the share that holds it too; the median over values.

    1 for two values, of which one is the background.
    """
    if len(counts) <= 2:
        return 1.0
    classes = np.arange(len(counts)) != int(np.argmax(counts))
    return float(np.median(equal[classes] / np.maximum(touching[classes], 1)))


def _distinct(planes: np.ndarray) -> np.ndarray:
    """Sorted distinct values; counting ends once they cannot be those of a segmentation."""
    present = planes[0, 0, :1]
    for plane in planes:
        low, high = plane.min(), plane.max()
        if plane.dtype.kind in "iu" and int(high) - int(low) < _TABLE:
            found = np.flatnonzero(np.bincount((plane.astype(np.int64) - int(low)).ravel())) + int(low)
        else:
            found = np.unique(plane)
        present = np.union1d(present, found)
        if not _possible(present):
            break
    return present


def _neighbours(
    values: np.ndarray, present: np.ndarray, adjacent: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each value: pairs of neighbours that both hold it, pairs that either of which holds it, its voxels.

    `adjacent`: planes that follow each other are neighbours.
    """
    count = len(present)
    equal, touching, voxels = (np.zeros(count, np.int64) for _ in range(3))

    def add(first: np.ndarray, second: np.ndarray) -> None:
        alike = np.bincount(first[first == second], minlength=count)
        equal[:] += alike
        touching[:] += np.bincount(first.ravel(), minlength=count) + np.bincount(second.ravel(), minlength=count)
        touching[:] -= alike

    above: np.ndarray | None = None
    for codes in map(_encoder(present), values):
        voxels += np.bincount(codes.ravel(), minlength=count)
        add(codes[1:], codes[:-1])
        add(codes[:, 1:], codes[:, :-1])
        if above is not None and adjacent:
            add(codes, above)
        above = codes
    return equal, touching, voxels


def _encoder(present: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a plane of values to their places among the sorted `present` ones."""
    span = float(present[-1]) - float(present[0])
    if span >= _TABLE or (present != np.rint(present)).any():
        return lambda plane: np.searchsorted(present, plane)
    base = int(present[0])
    table = np.zeros(int(span) + 1, np.int64)
    table[present.astype(np.int64) - base] = np.arange(len(present))
    return lambda plane: table[plane.astype(np.int64) - base]
