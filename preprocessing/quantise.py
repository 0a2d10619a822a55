"""Physical values -> int16 with scale and offset; values are kept, never edited.

value = scale * stored + offset. CT: scale 1, offset 0 (HU). Integers of a kept grid that fit: scale 1. Otherwise scale
and offset span the volume's finite minimum to maximum; where that leaves fewer than 4,096 levels between the 0.5 and
99.5 percentiles of the valid voxels, at most 0.01 % of them are saturated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preprocessing.stats import histogram, quantile_bins

LEVELS = 65535  # steps of int16
MIN_LEVELS = 4096
MAX_SATURATED = 1e-4
_INT16 = np.iinfo(np.int16)
_CT_MIN_RANGE = 256.0  # HU; "CT" of a narrower range is no HU, and whole numbers would not resolve it


@dataclass
class Quantised:
    """`stored` int16; `max_error` in physical units and `saturated_share` of the valid voxels."""

    stored: np.ndarray
    scale: float
    offset: float
    max_error: float
    saturated_share: float


def quantise(values: np.ndarray, valid: np.ndarray | None, modality: str, *, kept_grid: bool) -> Quantised:
    """Store one channel (Z, Y, X) of finite values; `valid` bool or None, `kept_grid`: it was not resampled."""
    low, high = float(values.min()), float(values.max())
    fits = low >= _INT16.min and high <= _INT16.max
    if modality == "ct" and fits and high - low >= _CT_MIN_RANGE:
        return _encode(values, valid, 1.0, 0.0)
    if kept_grid and _whole(values):
        if fits:
            return _encode(values, valid, 1.0, 0.0)
        if high - low <= LEVELS:
            return _encode(values, valid, 1.0, low - _INT16.min)
    full = _spanning(values, valid, low, high)
    if modality != "ct" or not fits:
        bins = quantile_bins(histogram(full.stored, valid), (0.005, 0.995))
        if bins[1] - bins[0] >= MIN_LEVELS:
            return full
    return _spanning(values, valid, *_narrowed(values.flatten() if valid is None else values[valid]))


def _whole(values: np.ndarray) -> bool:
    """Whether every value is an integer."""
    return values.dtype.kind in "iu" or all(bool((np.rint(plane) == plane).all()) for plane in values)


def _spanning(values: np.ndarray, valid: np.ndarray | None, low: float, high: float) -> Quantised:
    """Encoded so that [low, high] spans all of int16."""
    scale = max((high - low) / LEVELS, np.finfo(np.float64).tiny * 1e16)
    return _encode(values, valid, scale, low - _INT16.min * scale)


def _narrowed(flat: np.ndarray) -> tuple[float, float]:
    """The range (low, high) that saturates as few of the valid values as give 4,096 levels, and 0.01 % at most.

    `flat` (n,) is reordered: it may be as large as the volume.
    """
    budget = int(MAX_SATURATED * flat.size)
    ends = (int(0.005 * (flat.size - 1)), int(0.995 * (flat.size - 1)))
    flat.partition(sorted({budget, flat.size - 1 - budget, *ends}))
    wanted = (float(flat[ends[1]]) - float(flat[ends[0]])) * LEVELS / MIN_LEVELS
    bottom = np.sort(flat[: budget + 1]).astype(np.float64)
    top = np.sort(flat[flat.size - 1 - budget :])[::-1].astype(np.float64)

    def narrowest(saturated: int) -> tuple[float, float]:
        ranges = top[: saturated + 1][::-1] - bottom[: saturated + 1]  # i cut below, saturated - i above
        i = int(np.argmin(ranges))
        return float(bottom[i]), float(top[saturated - i])

    few, many = 0, budget
    while few < many:
        middle = (few + many) // 2
        low, high = narrowest(middle)
        if high - low <= wanted:
            many = middle
        else:
            few = middle + 1
    return narrowest(few)


def _encode(values: np.ndarray, valid: np.ndarray | None, scale: float, offset: float) -> Quantised:
    """Plane by plane, so that no float64 copy of the volume is made."""
    stored = np.empty(values.shape, np.int16)
    # Whole numbers beside float32 values lose nothing in float32, which takes half the time.
    plain = scale == 1.0 and offset == 0.0 and values.dtype in (np.float32, np.int16, np.uint16)
    level = np.empty(values.shape[1:], np.float32 if plain else np.float64)
    exact, error = np.empty_like(level), np.empty_like(level)
    worst, saturated, count = 0.0, 0, 0
    for k, plane in enumerate(values):
        np.copyto(exact, plane)
        np.copyto(level, exact)
        if not plain:
            level -= offset
            level /= scale
        np.rint(level, out=level)
        if level.min() < _INT16.min or level.max() > _INT16.max:
            outside = (level < _INT16.min) | (level > _INT16.max)
            saturated += int((outside if valid is None else outside & valid[k]).sum())
            np.clip(level, _INT16.min, _INT16.max, out=level)
        np.copyto(stored[k], level, casting="unsafe")
        if not plain:
            level *= scale
            level += offset
        np.subtract(level, exact, out=error)
        np.abs(error, out=error)
        if valid is not None:
            error *= valid[k]
        worst = max(worst, float(error.max(initial=0.0)))
        count += plane.size if valid is None else int(np.count_nonzero(valid[k]))
    return Quantised(stored, float(scale), float(offset), worst, saturated / max(count, 1))
