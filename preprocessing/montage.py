"""A picture of a store: three planes through the foreground of some volumes, labels outlined."""

from __future__ import annotations

import io

import numpy as np

from ssl3d.data.format import LABELS, VOLUMES
from ssl3d.data.store import Store

_PLANES = ("axial", "coronal", "sagittal")


def planes(store: Store, row: int) -> list[tuple[np.ndarray, np.ndarray | None, float]]:
    """For each plane: (picture in 0..1, label or None, height/width of a pixel), the patient upright.

    Axial rows run to Posterior, coronal and sagittal rows to Inferior; columns run to the patient's Left (axial and
    coronal, radiological view) or Posterior (sagittal).
    """
    shape = store.shape(row)[1:]
    box = np.asarray(store.cell("foreground_box", row)).reshape(2, 3)
    centre = [int(c) for c in box.mean(axis=0)]
    stats = store.attributes(row).valid_stats[0]
    scale, offset = store.cell("scale", row)[0], store.cell("offset", row)[0]
    spacing = store.cell("spacing", row)
    out = []
    for axis in range(3):
        z, y, x = (centre[a] if a == axis else 0 for a in range(3))
        depth, height, width = (1 if a == axis else int(shape[a]) for a in range(3))
        place = ((z, y, x), (depth, height, width))
        cut = store.read(row, *place, kind=VOLUMES)[0]
        values = np.take(cut, 0, axis=axis).astype(np.float32) * scale + offset
        picture = np.clip((values - stats.low) / max(stats.high - stats.low, 1e-12), 0.0, 1.0)
        label = None
        if store.cell("has_label", row):
            label = np.take(store.read(row, *place, kind=LABELS)[0], 0, axis=axis)
        rows, columns = (a for a in range(3) if a != axis)
        if axis > 0:  # z grows upwards, rows of a picture downwards
            picture, label = picture[::-1], None if label is None else label[::-1]
        out.append((picture, label, float(spacing[rows] / spacing[columns])))
    return out


def montage(store: Store, count: int = 12) -> bytes:
    """PNG of up to `count` volumes spread evenly over the index, a row each. Raises ValueError for an empty store."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if len(store) == 0:
        raise ValueError(f"store {store.path} holds no volume to draw")
    rows = np.unique(np.linspace(0, len(store) - 1, min(count, len(store))).astype(int))
    figure, grid = pyplot.subplots(len(rows), 3, figsize=(9, 3 * len(rows)), squeeze=False)
    for axes, row in zip(grid, rows):
        for axis, name, (picture, label, aspect) in zip(axes, _PLANES, planes(store, int(row))):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
            if label is not None and label.any():
                axis.contour(label > 0, levels=[0.5], colors="orange", linewidths=0.7)
                shown = np.ma.masked_equal(label, 0)
                axis.imshow(shown, cmap="tab20", alpha=0.35, aspect=aspect, interpolation="nearest")
            axis.set_axis_off()
            axis.set_title(f"{store.volume_id(int(row))}  {name}" if name == "axial" else name, fontsize=7, loc="left")
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80, metadata={"Software": None})
    pyplot.close(figure)
    return file.getvalue()
