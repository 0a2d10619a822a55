"""Overlap and surface distances between a predicted and a reference segmentation, per class, in mm.

Empty masks: both empty -> Dice and NSD 1 and distances 0 (the prediction is right); one empty -> Dice and NSD 0 and
both distances the diagonal of the image in mm (the worst a prediction can do), so that means stay finite and a missed
organ is never rewarded by dropping out of the average.
Definitions as in Maier-Hein et al., Metrics reloaded (Nature Methods 2024): HD95 is the larger of the two directed 95th
percentiles; ASSD the mean over the points of both surfaces. A surface voxel is a mask voxel with a face neighbour
outside the mask (outside the image counts as outside). NSD, the surface Dice at a tolerance (Nikolov et al., Journal
of Medical Internet Research 2021): the surface lies between voxels, in every cell of 2 x 2 x 2 voxels that holds both
sides, and weighs by its area there, by marching cubes, so that an axis of thick slices counts no less. A staircase
comes near another surface a little early: between balls of 17 mm on voxels of 2.5 x 0.7 x 1.1 mm it is 0.06 too high.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes, mesh_surface_area

from downstream.results import MEAN_FOREGROUND

METRICS = ("dice", "nsd", "hd95", "assd")
CORNERS = tuple(itertools.product((0, 1), repeat=3))
Mask = NDArray[np.bool_]


def dice(prediction: Mask, reference: Mask) -> float:
    """2 |P and R| / (|P| + |R|); 1 when both are empty."""
    total = int(prediction.sum()) + int(reference.sum())
    if total == 0:
        return 1.0
    return 2.0 * int((prediction & reference).sum()) / total


def surface(mask: Mask) -> Mask:
    """The mask's voxels with a face neighbour outside it."""
    return mask & ~ndimage.binary_erosion(mask)


def surface_distances(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> tuple[float, float]:
    """(HD95, ASSD) in mm of two masks (D, H, W) on a grid of `spacing` mm along each axis."""
    if not prediction.any() and not reference.any():
        return 0.0, 0.0
    if not prediction.any() or not reference.any():
        diagonal = float(np.linalg.norm(np.asarray(prediction.shape) * np.asarray(spacing, dtype=float)))
        return diagonal, diagonal
    box = ndimage.find_objects((prediction | reference).astype(np.uint8))[0]  # distances need no voxel further out
    edge_p, edge_r = surface(prediction[box]), surface(reference[box])
    to_reference = ndimage.distance_transform_edt(~edge_r, sampling=spacing)[edge_p]
    to_prediction = ndimage.distance_transform_edt(~edge_p, sampling=spacing)[edge_r]
    hd95 = max(np.percentile(to_reference, 95), np.percentile(to_prediction, 95))
    assd = (to_reference.sum() + to_prediction.sum()) / (to_reference.size + to_prediction.size)
    return float(hd95), float(assd)


def surface_dice(prediction: Mask, reference: Mask, spacing: Sequence[float], tolerance_mm: float) -> float:
    """Share of both surfaces' area that lies within `tolerance_mm` of the other: masks (D, H, W), `spacing` mm."""
    if not prediction.any() or not reference.any():
        return float(not prediction.any() and not reference.any())
    box = ndimage.find_objects((prediction | reference).astype(np.uint8))[0]
    (one, one_area), (other, other_area) = (surface_cells(mask[box], spacing) for mask in (prediction, reference))
    near = one_area[cKDTree(other).query(one)[0] <= tolerance_mm].sum()
    near += other_area[cKDTree(one).query(other)[0] <= tolerance_mm].sum()
    return float(near / (one_area.sum() + other_area.sum()))


def surface_cells(mask: Mask, spacing: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres (N,3) mm and surface areas (N,) mm^2 of the cells of 2 x 2 x 2 voxels that hold both sides of a mask."""
    padded = np.pad(mask, 1)  # a mask ends where the image does
    code = np.zeros([n - 1 for n in padded.shape], dtype=np.uint8)
    for bit, corner in enumerate(CORNERS):
        code |= padded[tuple(slice(c, n - 1 + c) for c, n in zip(corner, padded.shape))].astype(np.uint8) << bit
    mixed = np.argwhere((code > 0) & (code < 255))
    z, y, x = (float(s) for s in spacing)
    centres: NDArray[np.float64] = (mixed - 0.5) * np.array([z, y, x])
    return centres, cell_areas((z, y, x))[code[tuple(mixed.T)]]


@lru_cache(maxsize=64)
def cell_areas(spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    """(256,) mm^2: the surface by marching cubes in a cell whose corners lie inside by the bits of its number."""
    areas = np.zeros(256)
    for code in range(1, 255):
        cell = np.array([code >> bit & 1 for bit in range(8)], dtype=np.float64).reshape(2, 2, 2)
        vertices, faces, *_ = marching_cubes(cell, 0.5, spacing=spacing)
        areas[code] = mesh_surface_area(vertices, faces)
    return areas


def score(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    classes: Mapping[int, str],
    spacing: Sequence[float],
    metrics: Sequence[str] = METRICS,
    ignore: int | None = None,
    nsd_mm: float = 2.0,
) -> list[tuple[str, str, float]]:
    """(class name, metric, value) of every class, then their mean over the classes as MEAN_FOREGROUND.

    `prediction`, `reference` (D, H, W) hold class values; `classes` {value: name} are scored, background is not.
    Voxels whose reference is `ignore` are taken out of both. `nsd_mm`: tolerance of the surface Dice. Raises
    ValueError when the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} lie on different grids")
    known = np.ones(reference.shape, dtype=bool) if ignore is None else reference != ignore
    values: dict[str, list[float]] = {metric: [] for metric in metrics}
    rows: list[tuple[str, str, float]] = []
    for value, name in classes.items():
        p, r = (prediction == value) & known, (reference == value) & known
        found = {"dice": dice(p, r)}
        if "hd95" in metrics or "assd" in metrics:
            found["hd95"], found["assd"] = surface_distances(p, r, spacing)
        if "nsd" in metrics:
            found["nsd"] = surface_dice(p, r, spacing, nsd_mm)
        for metric in metrics:
            rows.append((name, metric, found[metric]))
            values[metric].append(found[metric])
    return rows + [(MEAN_FOREGROUND, metric, float(np.mean(values[metric]))) for metric in metrics]
