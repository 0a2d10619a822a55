"""Voxels that the scanner never measured: outside its circle, padded, blanked. Found, never changed.

A measured background has noise. One value that fills a large connected region up to the border of the volume was
written there: by padding, by defacing, by a brain mask. In CT the same value may be air clipped at -1024, so there the
values around air are left alone unless they lie outside a scan circle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

_PADDING_CONSTANTS = (-2000, -2048, -3000, -3024, -3071, -4096)  # outside the scan circle, by vendor
BELOW_AIR = -1100.0  # HU; a constant below it that fills a share of the volume is padding, noise is no constant
_ABOVE_AIR = -900.0  # HU; from here on a constant region that reaches the border is no air
_PADDING_SHARE = 1e-3
_SPIKE = 10.0  # times as frequent as the values around it
_CIRCLE_SHARES = (0.02, 0.40)  # of a slice that lies outside its circle; 0.215 when the circle touches the four edges
_CIRCLE_OVERLAP = 0.95  # intersection over union with the outside of a circle
_BORDER_SHARE = 0.005  # of the faces of a volume that a blanked region covers at least
_SPECKS = 0.002  # of a blanked region; more single voxels of another value make it a measured background
_BLOCKS_FROM = 16  # voxels; a thinner axis is looked at voxel by voxel
_BLANK_SHARE = 0.005  # of the volume, likewise


def padding(values: np.ndarray, spacing: Sequence[float] = ()) -> np.ndarray | None:
    """Padding of a CT (Z, Y, X) bool: known constants, wherever they are, and any other constant below air; or None.

    Such a constant fills at least 0.1 % of the volume and is ten times as frequent as the values around it: noise
    below air is neither.
    """
    low = values < BELOW_AIR
    if not low.any():
        return None
    candidates, counts = np.unique(values[low], return_counts=True)
    spike = counts >= _SPIKE * _typical_around(candidates, counts)
    constant = (spike & (counts >= _PADDING_SHARE * values.size)) | np.isin(candidates, _PADDING_CONSTANTS)
    if not constant.any():
        return None
    return np.isin(values, candidates[constant]) if constant.sum() > 1 else values == candidates[constant][0]


def _typical_around(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Voxels per HU within 5 HU of each of the sorted `values`, itself left out."""
    cumulative = np.concatenate([[0], np.cumsum(counts)])
    low, high = np.searchsorted(values, values - 5, "left"), np.searchsorted(values, values + 5, "right")
    return (cumulative[high] - cumulative[low] - counts) / 10.0


def outside_circle(values: np.ndarray, spacing: Sequence[float]) -> np.ndarray | None:
    """What lies outside the scan circle of axial slices (Z, Y, X) and holds one value, whichever that is.

    The four corners hold the value in every slice, and so does what is connected with them; together they have the
    shape of a square around a circle. Air that was clipped to the same value has not, and is left alone.
    """
    corners = values[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    if not (corners == corners[0, 0]).all():
        return None
    flat = np.ones(values.shape[1:], bool)
    for plane in values:
        flat &= plane == corners[0, 0]
    parts, _ = ndimage.label(flat)
    outside = np.isin(parts, parts[[0, 0, -1, -1], [0, -1, 0, -1]])
    share = float(outside.mean())
    if not _CIRCLE_SHARES[0] <= share <= _CIRCLE_SHARES[1]:
        return None
    places = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(outside.shape, spacing[1:])]
    distance = np.hypot(places[0][:, None], places[1][None])
    inside = outside.size - int(outside.sum())
    circle = distance > np.partition(distance.ravel(), inside - 1)[inside - 1]
    if (outside & circle).sum() < _CIRCLE_OVERLAP * (outside | circle).sum():
        return None
    return np.broadcast_to(outside, values.shape).copy()


def blanked(values: np.ndarray, modality: str) -> np.ndarray | None:
    """Regions (Z, Y, X) bool that reach the border of the volume and hold exactly one value; None when there are none.

    Padding, the blanked face of a defaced head, the outside of a brain mask: at least 0.5 % of the volume. In CT
    constants of -900 HU and below are left to `padding` and `outside_circle`: air may be clipped to one value.
    """
    faces = np.concatenate([face.ravel() for axis in range(3) for face in np.moveaxis(values, axis, 0)[[0, -1]]])
    constants, counts = np.unique(faces[np.isfinite(faces)], return_counts=True)
    total: np.ndarray | None = None
    for place in np.argsort(-counts)[:2]:
        constant = constants[place]
        if counts[place] < _BORDER_SHARE * faces.size or (modality == "ct" and constant < _ABOVE_AIR):
            continue
        same = values == constant
        region = _reaching_border(same)
        size = int(region.sum())
        if size >= _BLANK_SHARE * values.size and _specks(same) <= _SPECKS * size:
            total = region if total is None else total | region
    return total


def _reaching_border(same: np.ndarray) -> np.ndarray:
    """The part of a mask that is connected with the border of the volume through blocks of two voxels a side.

    Looser ends, up to a block away, belong to it; single voxels of the same value inside noise do not.
    """
    steps = [2 if n >= _BLOCKS_FROM else 1 for n in same.shape]
    core = same
    for axis, step in enumerate(steps):
        if step > 1:
            core = np.logical_and.reduceat(core, np.arange(0, core.shape[axis], step), axis=axis)
    parts, count = ndimage.label(core)
    touching = np.zeros(count + 1, bool)
    for axis in range(3):
        for face in np.moveaxis(parts, axis, 0)[[0, -1]]:
            touching[np.unique(face)] = True
    touching[0] = False
    region = touching[parts]
    for axis, (step, n) in enumerate(zip(steps, same.shape)):
        region = np.repeat(_dilated(region, axis), step, axis=axis).take(np.arange(n), axis=axis)
    return region & same


def _specks(same: np.ndarray) -> int:
    """Voxels outside a mask whose neighbours are all inside it: what noise leaves in a background that rounds to 0."""
    around = ~same
    for axis in range(3):
        inner, moved = np.moveaxis(around, axis, 0), np.moveaxis(same, axis, 0)
        inner[1:] &= moved[:-1]
        inner[:-1] &= moved[1:]
    return int(around.sum())


def _dilated(mask: np.ndarray, axis: int) -> np.ndarray:
    """A mask or either of its neighbours along an axis."""
    moved = np.moveaxis(mask, axis, 0)
    out = moved.copy()
    out[1:] |= moved[:-1]
    out[:-1] |= moved[1:]
    return np.moveaxis(out, 0, axis)
