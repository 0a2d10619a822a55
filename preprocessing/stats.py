"""Intensity statistics of a stored channel, exact, from the histogram of its int16 values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ssl3d.data.format import CT_WINDOW, ChannelStats

_BINS = 1 << 16
_SLAB_VOXELS = 1 << 19  # counted at once: they stay in the cache


def histogram(stored: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """(65536,) voxels of each int16 value, -32768 first, of (Z, Y, X) under a bool mask (None: everywhere)."""
    counts = np.zeros(_BINS, np.int64)
    for slab in _slabs(stored):
        counts += _count(stored[slab] if mask is None else stored[slab][mask[slab]])
    return counts


def _histograms(stored: np.ndarray, valid: np.ndarray | None, foreground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(of the valid voxels in the foreground, of all valid voxels); each voxel is counted once."""
    inside, outside = np.zeros(_BINS, np.int64), np.zeros(_BINS, np.int64)
    for slab in _slabs(stored):
        mask = foreground[slab] if valid is None else foreground[slab] & valid[slab]
        inside += _count(stored[slab][mask])
        mask = ~foreground[slab] if valid is None else ~foreground[slab] & valid[slab]
        outside += _count(stored[slab][mask])
    return inside, inside + outside


def _slabs(stored: np.ndarray) -> Iterator[slice]:
    planes = max(1, _SLAB_VOXELS // (stored.shape[1] * stored.shape[2]))
    return (slice(k, k + planes) for k in range(0, len(stored), planes))


def _count(values: np.ndarray) -> np.ndarray:
    places = values.ravel().astype(np.intp)
    places += _BINS // 2
    return np.bincount(places, minlength=_BINS)


def quantile_bins(counts: np.ndarray, shares: Sequence[float]) -> list[int]:
    """The stored value (as int) at or below which each share of the voxels lies."""
    cumulative = np.cumsum(counts)
    ranks = [max(1, int(np.ceil(share * cumulative[-1]))) for share in shares]
    return [int(np.searchsorted(cumulative, rank)) - _BINS // 2 for rank in ranks]


def _mean_std(counts: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    total = counts.sum()
    mean = float((counts * values).sum() / total)
    return mean, float(np.sqrt((counts * (values - mean) ** 2).sum() / total))


def channel_stats(
    stored: np.ndarray,
    valid: np.ndarray | None,
    foreground: np.ndarray,
    scale: float,
    offset: float,
    modality: str,
) -> tuple[ChannelStats, ChannelStats]:
    """(foreground statistics, statistics of all valid voxels) of one channel (Z, Y, X), in physical units.

    Both are clipped to the same [low, high]: the CT window, or the 0.5 and 99.5 percentiles of the valid voxels.
    """
    inside, everywhere = _histograms(stored, valid, foreground)
    if not everywhere.any():
        everywhere = histogram(stored, None)
    if not inside.any():
        inside = everywhere
    low, high = CT_WINDOW
    if modality != "ct":
        low, high = (scale * b + offset for b in quantile_bins(everywhere, (0.005, 0.995)))
        if low == high:  # nearly everything is one value, as in a sparse map
            occupied = np.flatnonzero(everywhere) - _BINS // 2
            low, high = scale * int(occupied[0]) + offset, scale * int(occupied[-1]) + offset
    return _stats(inside, scale, offset, low, high), _stats(everywhere, scale, offset, low, high)


def _stats(counts: np.ndarray, scale: float, offset: float, low: float, high: float) -> ChannelStats:
    occupied = np.flatnonzero(counts)
    weights = counts[occupied].astype(np.float64)
    values = scale * (occupied - _BINS // 2).astype(np.float64) + offset
    mean, std = _mean_std(weights, values)
    clipped_mean, clipped_std = _mean_std(weights, np.clip(values, low, high))
    percentiles = [scale * b + offset for b in quantile_bins(counts, (0.005, 0.5, 0.995))]
    return ChannelStats(
        count=int(counts.sum()),
        mean=mean,
        std=std,
        minimum=float(values[0]),
        maximum=float(values[-1]),
        percentile_00_5=percentiles[0],
        percentile_50=percentiles[1],
        percentile_99_5=percentiles[2],
        low=float(low),
        high=float(high),
        clipped_mean=clipped_mean,
        clipped_std=clipped_std,
    )
