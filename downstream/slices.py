"""A test case as the report's slice viewer shows it: the box around reference and predictions, at the stored voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from downstream.pictures import REFERENCE, Case, around, outlined, pictured
from ssl3d.viewer import Paint, Scan, class_colours, fit


def scan_of(case: Case, arms: Sequence[str]) -> Scan:
    """Image, reference (outlined) and the predictions of `arms`, first shown in the middle of the pictured slice."""
    maps = {REFERENCE: case.reference} | {arm: case.predictions[arm] for arm in arms if arm != REFERENCE}
    classes = outlined(case)
    box = around(np.any([np.isin(array, classes) for array in maps.values()], axis=0))
    image = case.image[box]
    grid = fit(image.shape, case.spacing, [side.start for side in box])
    low, high = (float(v) for v in np.percentile(image, [0.5, 99.5]))
    grey = np.clip((grid.means(image) - low) / max(high - low, 1e-6), 0, 1)
    colours = class_colours(classes)
    z, (rows, columns) = pictured(case)
    start = (z, (rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2)
    first = [(at - side.start) // step for at, side, step in zip(start, box, grid.step)]
    depth, height, width = case.reference.shape
    return Scan(
        f"patient {case.patient}",
        (255 * grey).round().astype(np.uint8),
        grid,
        (depth, height, width),
        {name: grid.centres(array[box]) for name, array in maps.items()},
        [Paint(value, case.classes.get(value, f"class_{value}"), colours[value]) for value in classes],
        REFERENCE,
        (first[0], first[1], first[2]),
    )
