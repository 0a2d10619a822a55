"""How much two volumes look alike, by their thumbnails."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pandas as pd
from scipy.ndimage import convolve1d

from ssl3d.data.thumbnail import SIDE, world_boxes

MAX_FLIPS = 12  # bits in which the hashes of two volumes that look alike may differ
NEAR = 0.99  # correlation of 32^3 thumbnails; a hash alone would merge most of a registered or cropped archive
_BLUR = (0.25, 0.5, 0.25)  # resampling costs a small volume the detail of a voxel of its thumbnail; copies stay above
_COARSE_SIDE = 8
_DENSE = 0.02  # share of a block's pairs from which on a matrix product is faster than picking them
_SAME_EXTENT = 0.01  # relative; volumes of one extent need not be laid upon each other
_OVERLAP = 0.5  # of both volumes, in the world
_LOOSE = 0.25  # squared distance of unit vectors (a correlation of 0.875) up to which a crop may pass


class Thumbnails(Protocol):
    """A `ThumbnailFile`, or several of them one behind the other."""

    def __getitem__(self, row: int) -> np.ndarray: ...


class Looks:
    """Thumbnails of chosen rows, and 8^3 pictures of them that are kept once they have been needed.

    `index`: columns `affine` and `shape` of those rows.
    """

    def __init__(self, thumbnails: Thumbnails, index: pd.DataFrame, rows: np.ndarray) -> None:
        self._thumbnails, self._rows = thumbnails, rows
        self._boxes = world_boxes(np.array(index["affine"].tolist()), np.array(index["shape"].tolist()))
        self._coarse = np.zeros((len(rows), _COARSE_SIDE**3), np.float32)
        self._known = np.zeros(len(rows), bool)

    def correlation(self, a: int, b: int) -> float:
        """Correlation of two thumbnails, or where it is higher, of the part of the world that both show."""
        first, second = self._picture(a), self._picture(b)
        whole = float(_unit(first) @ _unit(second))
        if whole > NEAR or self._same_extent(np.array([a]), np.array([b]))[0]:
            return whole
        low, high = np.maximum(*self._boxes[[a, b], 0]), np.minimum(*self._boxes[[a, b], 1])
        own = np.ptp(self._boxes[[a, b]], axis=1)
        if (high <= low).any() or (np.prod(high - low) < _OVERLAP * own.prod(axis=1)).any():
            return whole
        parts = [_cut(picture, self._boxes[row], low, high) for picture, row in ((first, a), (second, b))]
        return max(whole, float(_unit(parts[0]) @ _unit(parts[1])))

    def close(
        self, rows: np.ndarray, columns: np.ndarray, i: np.ndarray, j: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Those of the pairs (rows[i], columns[j]) whose correlation may be above NEAR.

        8^3 pictures are projections of the thumbnails' unit vectors, so two of them are never farther apart than these:
        no pair of one extent is lost. Of different extents (crops) those are kept that come near.
        """
        if len(i) > _DENSE * len(rows) * len(columns):
            left, right = self._coarse_of(rows), self._coarse_of(columns)
            lengths = (left**2).sum(1)[:, None] + (right**2).sum(1)[None]
            squared = (lengths - 2 * (left @ right.T))[i, j]
        else:
            parts = [slice(k, k + 4096) for k in range(0, len(i), 4096)]
            steps = [self._coarse_of(rows[i[part]]) - self._coarse_of(columns[j[part]]) for part in parts]
            squared = np.concatenate([(step**2).sum(1) for step in steps]) if steps else np.zeros(0)
        kept = squared < _LOOSE
        first, second, squared = rows[i[kept]], columns[j[kept]], squared[kept]
        kept = (squared < 2.0 * (1.0 - NEAR) + 1e-3) | ~self._same_extent(first, second)  # 1e-3: thumbnails are float16
        return first[kept], second[kept]

    def _picture(self, row: int) -> np.ndarray:
        """A thumbnail (32, 32, 32), slightly blurred."""
        picture = self._thumbnails[int(self._rows[row])].astype(np.float32)
        for axis in range(3):
            picture = convolve1d(picture, _BLUR, axis=axis, mode="nearest")
        return picture

    def _same_extent(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Whether the world boxes of pairs of rows are of one size."""
        first, second = np.ptp(self._boxes[a], axis=1), np.ptp(self._boxes[b], axis=1)
        return (np.abs(first - second) <= _SAME_EXTENT * np.maximum(first, second)).all(axis=1)

    def _coarse_of(self, rows: np.ndarray) -> np.ndarray:
        """(n, 512) projections of the unit vectors of rows onto blocks of 4^3 voxels."""
        step = SIDE // _COARSE_SIDE
        for row in np.unique(rows[~self._known[rows]]).tolist():
            blocks = _unit(self._picture(row)).reshape(_COARSE_SIDE, step, _COARSE_SIDE, step, _COARSE_SIDE, step)
            self._coarse[row] = blocks.sum(axis=(1, 3, 5)).ravel() / step**1.5
            self._known[row] = True
        return self._coarse[rows]


def _unit(picture: np.ndarray) -> np.ndarray:
    """A picture as a vector of mean 0 and length 1 (0 for a constant one)."""
    vector = picture.ravel() - picture.mean()
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector


def _cut(picture: np.ndarray, box: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The part of a picture of a world `box` (2, 3) that lies between `low` and `high`, linearly interpolated, 32^3."""
    steps = (np.arange(SIDE) + 0.5) / SIDE
    for axis in range(3):
        places = (low[axis] + steps * (high[axis] - low[axis]) - box[0, axis]) / (box[1, axis] - box[0, axis])
        at = np.clip(places * SIDE - 0.5, 0, SIDE - 1)
        below = np.minimum(at.astype(int), SIDE - 2)
        share = (at - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        picture = (1 - share) * picture.take(below, axis) + share * picture.take(below + 1, axis)
    return picture
