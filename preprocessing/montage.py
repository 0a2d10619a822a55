"""Pictures of a volume: three planes through its foreground, labels and unmeasured voxels marked."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from ssl3d.data.format import LABELS, VALID, VOLUMES
from ssl3d.data.store import Store
from ssl3d.viewer import CLASS_COLOURS, UNMEASURED

PLANES = ("axial", "coronal", "sagittal")
_MOST_PIXELS = 320  # a side; larger planes are thinned out
_TINT = 0.35


@dataclass(frozen=True)
class Plane:
    """One cut: `picture` (rows, columns) 0..1, `label` and `valid` or None, and its size in mm; the patient is upright.

    Axial rows run to Posterior, coronal and sagittal rows to Inferior; columns run to the patient's Left (axial and
    coronal, radiological view) or Posterior (sagittal).
    """

    name: str
    picture: np.ndarray
    label: np.ndarray | None
    valid: np.ndarray | None
    height_mm: float
    width_mm: float


def planes(store: Store, row: int) -> list[Plane]:
    """The three cuts through the middle of a volume's foreground box, first channel.

    Raises ValueError when a chunk is damaged.
    """
    shape = [int(n) for n in store.cell("shape", row)]
    box = np.asarray(store.cell("foreground_box", row)).reshape(2, 3)
    centre = [int(c) for c in box.mean(axis=0)]
    spacing = store.cell("spacing", row)
    out = []
    for axis, name in enumerate(PLANES):
        start = (centre[0] if axis == 0 else 0, centre[1] if axis == 1 else 0, centre[2] if axis == 2 else 0)
        size = (1 if axis == 0 else shape[0], 1 if axis == 1 else shape[1], 1 if axis == 2 else shape[2])
        rows, columns = (a for a in range(3) if a != axis)
        steps = [1 + (shape[a] - 1) // _MOST_PIXELS for a in (rows, columns)]

        def cut(kind: str) -> np.ndarray:
            """The plane of an array as it is shown: z grows upwards, rows of a picture downwards."""
            plane = np.take(store.read(row, start, size, kind=kind)[0], 0, axis=axis)  # noqa: B023 - called at once
            return (plane[::-1] if axis > 0 else plane)[:: steps[0], :: steps[1]]  # noqa: B023

        picture = windowed(store, row, cut(VOLUMES))
        label = cut(LABELS) if store.cell("has_label", row) else None
        valid = cut(VALID) if store.cell("has_valid", row) else None
        height, width = shape[rows] * spacing[rows], shape[columns] * spacing[columns]
        out.append(Plane(name, picture, label, valid, float(height), float(width)))
    return out


def windowed(store: Store, row: int, stored: np.ndarray) -> np.ndarray:
    """Stored numbers of a volume's first channel -> 0..1 of the range that its modality is shown in."""
    stats = store.cell("valid_stats", row)[0]
    values = stored.astype(np.float32) * store.cell("scale", row)[0] + store.cell("offset", row)[0]
    return np.clip((values - stats["low"]) / max(stats["high"] - stats["low"], 1e-12), 0.0, 1.0)


def class_colour(value: int) -> str:
    """The colour of a label value above 0, the same in every volume."""
    return CLASS_COLOURS[(value - 1) % len(CLASS_COLOURS)]


def png(plane: Plane) -> bytes:
    """The plane as PNG: grey, classes tinted and outlined in their colours, unmeasured voxels tinted blue."""
    from matplotlib import colors, image

    colour = np.repeat(plane.picture[..., None], 3, axis=2).astype(np.float64)
    if plane.valid is not None:
        outside = plane.valid == 0
        colour[outside] = (1 - _TINT) * colour[outside] + _TINT * np.array(colors.to_rgb(UNMEASURED))
    if plane.label is not None:
        inside = plane.label > 0
        palette = colors.to_rgba_array([class_colour(i + 1) for i in range(len(CLASS_COLOURS))])[:, :3]
        paint = palette[(plane.label.astype(np.int64) - 1) % len(palette)]
        colour[inside] = (1 - _TINT) * colour[inside] + _TINT * paint[inside]
        outline = inside & _edges(plane.label)
        colour[outline] = paint[outline]
    file = io.BytesIO()
    pixels = (255 * np.clip(colour, 0, 1)).round().astype(np.uint8)
    image.imsave(file, pixels, format="png")
    return file.getvalue()


def _edges(label: np.ndarray) -> np.ndarray:
    """Pixels with a neighbour of another class."""
    edges = np.zeros(label.shape, bool)
    for axis in range(2):
        first, second = np.moveaxis(label, axis, 0)[:-1], np.moveaxis(label, axis, 0)[1:]
        differs = first != second
        np.moveaxis(edges, axis, 0)[:-1] |= differs
        np.moveaxis(edges, axis, 0)[1:] |= differs
    return edges
