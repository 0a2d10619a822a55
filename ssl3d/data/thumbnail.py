"""Canonical thumbnails: a volume as 32x32x32 z-scored voxels, to propose and confirm near duplicates."""

from __future__ import annotations

import numpy as np

from ssl3d.data.format import VolumeAttributes

SIDE = 32
_STRAIGHT_DEGREES = 1.0  # a grid turned by less than this against the world is taken as it is
_FINE = 2  # samples along each axis of a thumbnail's voxel, where a turned grid is sampled
_HASH_SIDE = 4

_WORLD_TO_AXES = np.array([[0, 0, 1.0], [0, -1.0, 0], [-1.0, 0, 0]])  # world RAS+ -> z Superior, y Posterior, x Left

Box = tuple[slice, slice, slice]


def thumbnail(image: np.ndarray, attributes: VolumeAttributes, valid: np.ndarray | None = None) -> np.ndarray:
    """(32,32,32) float16: the first channel, area-averaged over the box of its valid voxels and z-scored.

    `image` (C,Z,Y,X) int16 as stored; `valid` (1,Z,Y,X). Axes are the world's: a grid that is turned against it is
    sampled in the box around it, so that a copy on a straight grid looks the same. Intensities are clipped to the
    channel's [low, high]; what is invalid or outside the grid counts as low, so that neither metal nor the scan circle
    nor padding decides. Independent of the foreground box.
    """
    box = _valid_box(image.shape[1:], valid)
    stats, scale, offset = attributes.valid_stats[0], attributes.scale[0], attributes.offset[0]
    low = float(stats.low)
    turned = _is_turned(np.asarray(attributes.affine, dtype=np.float64))
    window = tuple(int(np.clip(round((value - offset) / scale), -32768, 32767)) for value in (stats.low, stats.high))
    measured = None if valid is None else valid[0][box]
    small = scale * _area_means(image[0][box], SIDE * _FINE if turned else SIDE, window, measured) + offset
    if turned:
        inside = None if measured is None else _area_means(measured, SIDE * _FINE) > 0.5
        small = _straightened(small, inside, np.asarray(attributes.affine, dtype=np.float64), box, low)
    std = small.std()
    return ((small - small.mean()) / (std if std > 0 else 1.0)).astype(np.float16)


def perceptual_hash(small: np.ndarray) -> str:
    """64-bit hash (16 hex digits) of a thumbnail: which of its lowest 4x4x4 cosine coefficients exceed their median.

    Zauner 2010, in 3D. It only proposes candidates: a near duplicate is declared on the thumbnails.
    """
    from scipy import fft

    low_frequencies = fft.dctn(small.astype(np.float64), norm="ortho")[:_HASH_SIDE, :_HASH_SIDE, :_HASH_SIDE].ravel()
    bits = low_frequencies > np.median(low_frequencies[1:])
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def _valid_box(shape: tuple[int, ...], valid: np.ndarray | None) -> Box:
    """The smallest box (z, y, x) of all valid voxels; the whole volume when all or none are."""
    if valid is None or not valid.any():
        return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
    through_z = valid[0].max(axis=0)
    found = [np.flatnonzero(seen) for seen in (valid[0].max(axis=(1, 2)), through_z.max(axis=1), through_z.max(axis=0))]
    z, y, x = (slice(int(inside[0]), int(inside[-1]) + 1) for inside in found)
    return z, y, x


def _area_means(
    part: np.ndarray, side: int, window: tuple[int, ...] | None = None, measured: np.ndarray | None = None
) -> np.ndarray:
    """(side, side, side) float64: integers (Z,Y,X) averaged, clipped to `window`; its lower end where not `measured`.

    The planes of an interval are summed before the products along y and x: one pair of them an interval, not a plane.
    """
    along_z, along_y, along_x = (_area_weights(n, side) for n in part.shape)
    small = np.zeros((side, side, side), dtype=np.float64)
    slab, values = (np.empty(part.shape[1:], np.float32) for _ in range(2))  # no float copy of the whole volume
    plane = np.empty(part.shape[1:], part.dtype)
    for row, weights in enumerate(along_z):
        slab.fill(0.0)
        whole = weights.max()
        for z in np.flatnonzero(weights):
            if window is None:
                plane[...] = part[z]
            else:
                np.clip(part[z], *window, out=plane)
                if measured is not None:
                    np.copyto(plane, window[0], where=measured[z] == 0)
            np.copyto(values, plane)
            if weights[z] != whole:  # the first and the last plane of an interval
                values *= weights[z] / whole
            slab += values
        small[row] = whole * (along_y @ slab @ along_x.T)
    return small


def _area_weights(n: int, side: int = SIDE) -> np.ndarray:
    """(side, n) float32: the share of each of `side` equal intervals covered by each of n voxels; rows sum to 1."""
    edges = np.linspace(0, n, side + 1)
    voxel = np.arange(n)
    overlap = np.minimum(edges[1:, None], voxel + 1) - np.maximum(edges[:-1, None], voxel)
    return (np.clip(overlap, 0, None) * (side / n)).astype(np.float32)


def _is_turned(affine: np.ndarray) -> bool:
    """Whether an axis of the grid leaves its axis of the world by more than a degree."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool((np.abs(columns).max(axis=0) < np.cos(np.deg2rad(_STRAIGHT_DEGREES))).any())


def _straightened(
    fine: np.ndarray, inside: np.ndarray | None, affine: np.ndarray, box: Box, low: float
) -> np.ndarray:
    """(32,32,32) of the world's box around a turned grid, `low` outside the grid.

    `fine` (64,64,64) are the means of the grid's `box` of voxels, `inside` which of them are valid (None: all); the
    world's box is that around the valid ones.
    """
    from scipy.ndimage import map_coordinates

    first = np.array([part.start for part in box], dtype=np.float64)
    cell = np.array([part.stop - part.start for part in box], dtype=np.float64) / len(fine)  # voxels
    if inside is None or not inside.any():
        corners = np.array(list(np.ndindex(2, 2, 2))) * len(fine) * cell + first - 0.5
    else:  # the centres: the edge of a turned region is jagged, its teeth would enlarge the box
        corners = (np.argwhere(inside) + 0.5) * cell + first - 0.5
    to_axes = _WORLD_TO_AXES @ affine[:3]
    places = corners @ to_axes[:, :3].T + to_axes[:, 3]
    start, extent = places.min(axis=0), np.ptp(places, axis=0)
    steps = (np.arange(SIDE * _FINE) + 0.5) / (SIDE * _FINE)
    grid = np.stack(np.meshgrid(*[s + e * steps for s, e in zip(start, extent)], indexing="ij"))
    voxels = np.einsum("ij,j...->i...", np.linalg.inv(to_axes[:, :3]), grid - to_axes[:, 3, None, None, None])
    cells = (voxels + 0.5 - first[:, None, None, None]) / cell[:, None, None, None] - 0.5
    sampled = map_coordinates(fine, cells, order=1, mode="constant", cval=low)
    return sampled.reshape(SIDE, _FINE, SIDE, _FINE, SIDE, _FINE).mean(axis=(1, 3, 5))


def world_boxes(affines: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """(n, 2, 3): lowest and highest corners in mm, along Superior, Posterior and Left, of n grids (z, y, x).

    `affines` (n, 4, 4) or (n, 16), `shapes` (n, 3).
    """
    to_axes = _WORLD_TO_AXES @ np.asarray(affines, dtype=np.float64).reshape(-1, 4, 4)[:, :3]
    corners = np.array(list(np.ndindex(2, 2, 2))) * np.asarray(shapes)[:, None] - 0.5
    places = corners @ to_axes[:, :, :3].transpose(0, 2, 1) + to_axes[:, None, :, 3]
    return np.stack([places.min(axis=1), places.max(axis=1)], axis=1)
