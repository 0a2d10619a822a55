"""A volume of a store as the slice viewer shows it: a small copy, windowed as the pictures are, and its classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.montage import class_colour, windowed
from ssl3d.data.format import LABELS, VALID, VOLUMES
from ssl3d.data.store import Store
from ssl3d.viewer import UNMEASURED, Grid, Paint, Scan, fit

_UNMEASURED = -1  # no label is negative
_SLAB = 32  # slices read at a time: a whole CT need not fit in memory as floats


def scan_of(store: Store, row: int) -> Scan:
    """The first channel of a volume with its labels and unmeasured voxels, first shown where `montage.planes` cuts.

    Raises ValueError when a chunk is damaged.
    """
    shape = [int(n) for n in store.cell("shape", row)]
    grid = fit(shape, store.cell("spacing", row))
    image = _read(store, row, VOLUMES, grid, lambda slab: (255 * windowed(store, row, grid.means(slab))).round())
    label = _read(store, row, LABELS, grid, grid.centres) if store.cell("has_label", row) else None
    valid = _read(store, row, VALID, grid, grid.centres) if store.cell("has_valid", row) else None
    names = store.label_info(row).classes if label is not None else {}
    marks = np.zeros(image.shape, np.int32) if label is None else label.astype(np.int32)
    if valid is not None:
        marks[(valid == 0) & (marks == 0)] = _UNMEASURED
    found = [int(value) for value in np.unique(marks) if value > 0]
    paints = [Paint(value, names.get(value, f"class_{value}"), class_colour(value)) for value in found]
    box = np.asarray(store.cell("foreground_box", row)).reshape(2, 3)
    start = [int(c) // step for c, step in zip(box.mean(axis=0), grid.step)]
    return Scan(
        store.volume_id(row),
        image.astype(np.uint8),
        grid,
        (shape[0], shape[1], shape[2]),
        {} if label is None and valid is None else {"label": marks},
        [Paint(_UNMEASURED, "not measured", UNMEASURED), *paints],
        start=(start[0], start[1], start[2]),
    )


def _read(
    store: Store, row: int, kind: str, grid: Grid, reduce: Callable[[NDArray[Any]], NDArray[Any]]
) -> NDArray[Any]:
    """An array of the store, reduced slab by slab; slabs are whole blocks of the grid."""
    _, depth, height, width = store.shape(row, kind)
    deep = grid.step[0] * max(1, _SLAB // grid.step[0])
    reduced = []
    for z in range(0, depth, deep):
        size = (min(deep, depth - z), height, width)
        reduced.append(reduce(store.read(row, (z, 0, 0), size, kind, channel=0)[0]))
    return np.concatenate(reduced)
