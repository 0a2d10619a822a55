"""The coarse grid that a page holds of a scan: whole steps of the stored voxels, so that every place can be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 128  # voxels of a copy along an axis
MOST_VOXELS = 350_000  # of a copy, a byte each: as text 0.47 MB of pure noise, 0.15 to 0.35 MB of CT and MR
_FINER = 1.03  # ratio of the voxel sizes that are tried one after the other


@dataclass(frozen=True)
class Grid:
    """Blocks of `step` (z,y,x) stored voxels, the first at the voxel `origin`; `spacing` of a stored voxel in mm."""

    step: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[int, int, int] = (0, 0, 0)

    def means(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """Means (D,H,W) over the blocks of an array (Z,Y,X); blocks at the far ends may be smaller."""
        found: NDArray[np.float32] = array.astype(np.float32)
        for axis, step in enumerate(self.step):
            if step > 1:
                starts = np.arange(0, array.shape[axis], step)
                size = np.diff(np.append(starts, array.shape[axis])).astype(np.float32)
                found = np.add.reduceat(found, starts, axis=axis)
                found /= size.reshape([-1 if a == axis else 1 for a in range(3)])
        return found

    def centres(self, array: NDArray[Any]) -> NDArray[Any]:
        """The middle voxels (D,H,W) of the blocks of an array (Z,Y,X): labels have no mean."""
        at = [np.minimum(np.arange(0, n, step) + (step - 1) // 2, n - 1) for n, step in zip(array.shape, self.step)]
        return array[np.ix_(*at)]


def fit(shape: Sequence[int], spacing: Sequence[float], origin: Sequence[int] = (0, 0, 0)) -> Grid:
    """The finest grid of about cubic blocks with at most LARGEST voxels an axis and MOST_VOXELS in all.

    `shape` (Z,Y,X) stored voxels of `spacing` mm, the first of them at `origin` of the volume.
    """
    edge = min(spacing)  # mm
    while True:
        step = [max(1, math.ceil(edge / s - 1e-6)) for s in spacing]
        size = [math.ceil(n / by) for n, by in zip(shape, step)]
        if max(size) <= LARGEST and math.prod(size) <= MOST_VOXELS:
            return Grid((step[0], step[1], step[2]), _triple(spacing), (origin[0], origin[1], origin[2]))
        edge *= _FINER


def _triple(spacing: Sequence[float]) -> tuple[float, float, float]:
    return (float(spacing[0]), float(spacing[1]), float(spacing[2]))
