"""Probabilities on the stored grid -> scores on the original grid, the same way for every measure and arm."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downstream.context import Cell, Context
from downstream.inference import read_reference, resample, to_labels
from downstream.metrics import score
from downstream.results import CELLS, is_finished, write_cell
from ssl3d.data.format import LABELS_ORIGINAL
from ssl3d.files import write_bytes


def score_case(context: Context, patient: str, row: int, probabilities: NDArray[np.floating]) -> list[dict[str, Any]]:
    """Rows (results.CELL_COLUMNS) of one volume from its class probabilities (K,Z,Y,X) on the stored grid."""
    store = context.store
    reference = read_reference(store, row)
    affine = np.asarray(store.attributes(row).affine, dtype=np.float64)
    on_grid = resample(probabilities, affine, reference.affine, reference.label.shape)
    prediction = to_labels(on_grid, list(context.classes))
    suite = context.suite
    scores = score(
        prediction, reference.label, context.classes, reference.spacing, suite.metrics, reference.ignore, suite.nsd_mm
    )
    case = store.volume_id(row)
    return [
        {"patient": patient, "case": case, "label": label, "metric": metric, "value": value}
        for label, metric, value in scores
    ]


def finish(context: Context, cell: Cell, rows: Sequence[dict[str, Any]]) -> None:
    """Store a finished cell: the write that makes it count comes last, after its pictures.

    Rows that name no `step` are those of the training's end.
    """
    end = {"step": context.measure(cell).last_step()}
    write_cell(context.out, context.key(cell), [end | row for row in rows])


def keep_picture(context: Context, cell: Cell, row: int, probabilities: NDArray[np.floating]) -> None:
    """Keep the prediction of a picture case on the stored grid, where the image is."""
    if row in cell.pictures:
        labels = to_labels(probabilities, list(context.classes)).astype(np.int32)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, labels=labels)
        write_bytes(picture_path(context, cell, row), buffer.getvalue())


def read_picture(context: Context, cell: Cell, row: int) -> NDArray[np.int32]:
    """Label values (Z,Y,X) of a prediction that `keep_picture` kept."""
    with np.load(picture_path(context, cell, row), allow_pickle=False) as content:
        return content["labels"]


def picture_path(context: Context, cell: Cell, row: int) -> Path:
    return context.out / CELLS / f"{context.key(cell)}_{context.store.volume_id(row)}.npz"


def done(context: Context, cell: Cell) -> bool:
    """Whether a cell's scores, and its pictures if it has any, are stored."""
    pictures = all(picture_path(context, cell, row).exists() for row in cell.pictures)
    return pictures and is_finished(context.out, context.key(cell))


def grid_warning(context: Context, patients: Sequence[str]) -> list[str]:
    """A sentence when some test volumes have no labels on their original grid and are scored on the stored one."""
    store = context.store
    without = [row for row in context.rows_of(tuple(patients)) if not store.cell("has_label_original", row)]
    if not without:
        return []
    return [
        f"{len(without)} test volume(s), first '{store.volume_id(without[0])}', have no {LABELS_ORIGINAL} in the "
        "store: they are scored on the stored grid."
    ]
