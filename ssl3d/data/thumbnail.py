"""Canonical thumbnails: a volume as 32x32x32 z-scored voxels, to propose and confirm near duplicates."""

from __future__ import annotations

import numpy as np

from ssl3d.data.format import VolumeAttributes

SIDE = 32


def thumbnail(image: np.ndarray, attributes: VolumeAttributes, valid: np.ndarray | None = None) -> np.ndarray:
    """(32,32,32) float16: the first channel, area-averaged over the whole volume and z-scored.

    `image` (C,Z,Y,X) int16 as stored; `valid` (1,Z,Y,X). Intensities are clipped to the channel's [low, high] and
    invalid voxels count as low, so that neither metal nor the scan circle decides. Independent of the foreground box.
    """
    stats = attributes.valid_stats[0]
    weights = [_area_weights(n) for n in image.shape[1:]]
    small = np.zeros((SIDE, SIDE, SIDE), dtype=np.float64)
    for z, plane in enumerate(image[0]):  # plane by plane: no float copy of the whole volume
        values = attributes.scale[0] * plane.astype(np.float32) + attributes.offset[0]
        values = np.clip(values, stats.low, stats.high)
        if valid is not None:
            values = np.where(valid[0, z] != 0, values, np.float32(stats.low))
        rows = np.flatnonzero(weights[0][:, z])
        small[rows] += weights[0][rows, z, None, None] * (weights[1] @ values @ weights[2].T)
    std = small.std()
    return ((small - small.mean()) / (std if std > 0 else 1.0)).astype(np.float16)


def _area_weights(n: int) -> np.ndarray:
    """(32, n) float32: the share of each of 32 equal intervals covered by each of n voxels; rows sum to 1."""
    edges = np.linspace(0, n, SIDE + 1)
    voxel = np.arange(n)
    overlap = np.minimum(edges[1:, None], voxel + 1) - np.maximum(edges[:-1, None], voxel)
    return (np.clip(overlap, 0, None) * (SIDE / n)).astype(np.float32)
