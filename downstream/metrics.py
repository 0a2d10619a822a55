"""Overlap and surface distances between a predicted and a reference segmentation, per class, in mm.

Empty masks: both empty -> Dice 1 and distances 0 (the prediction is right); one empty -> Dice 0 and both distances the
diagonal of the image in mm (the worst a prediction can do), so that means stay finite and a missed organ is never
rewarded by dropping out of the average.
Definitions as in Maier-Hein et al., Metrics reloaded (Nature Methods 2024): HD95 is the larger of the two directed 95th
percentiles; ASSD the mean over the points of both surfaces. A surface voxel is a mask voxel with a face neighbour
outside the mask (outside the image counts as outside).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from downstream.results import MEAN_FOREGROUND

METRICS = ("dice", "hd95", "assd")
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


def score(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    classes: Mapping[int, str],
    spacing: Sequence[float],
    metrics: Sequence[str] = METRICS,
    ignore: int | None = None,
) -> list[tuple[str, str, float]]:
    """(class name, metric, value) of every class, then their mean over the classes as MEAN_FOREGROUND.

    `prediction`, `reference` (D, H, W) hold class values; `classes` {value: name} are scored, background is not.
    Voxels whose reference is `ignore` are taken out of both. Raises ValueError when the shapes differ.
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
        for metric in metrics:
            rows.append((name, metric, found[metric]))
            values[metric].append(found[metric])
    return rows + [(MEAN_FOREGROUND, metric, float(np.mean(values[metric]))) for metric in metrics]
