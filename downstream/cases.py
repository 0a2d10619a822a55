"""OUT/cases/<case>.npz: a few test cases for the report's pictures, extremes of all test patients among them.

`image` (Z,Y,X) float32 normalised; `reference` and `prediction__<arm>` (Z,Y,X) int32 label values, all on the stored
grid; `arms` names and their `dice`, mean foreground on the ORIGINAL grid as in results.csv; `patient`, `case`,
`measure`, `n_labelled`, `seed`; `spacing` (z,y,x) mm; `class_values`, `class_names`.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from downstream.comparison import patient_scores
from downstream.context import Cell, Context
from downstream.inference import read_image, read_whole
from downstream.pictures import worth_a_look
from downstream.results import MEAN_FOREGROUND, read_cell
from downstream.scoring import read_picture
from ssl3d.data.format import LABELS
from ssl3d.files import write_bytes

CASES = "cases"


def write_cases(context: Context, cells: Sequence[Cell], results: pd.DataFrame) -> list[Path]:
    """Write a file for each test case shown, from the stored predictions of `cells` (one an arm) and all `results`."""
    folder = context.out / CASES
    shutil.rmtree(folder, ignore_errors=True)
    if not cells:
        return []
    scores = patient_scores(results, cells[0].measure, "dice", cells[0].n_labelled)
    baselines = {cell.arm.name: cell.arm.baseline for cell in cells}
    patients = worth_a_look(scores, baselines, context.suite.pictures)
    return [_write_case(context, context.rows[patient][0], cells, folder) for patient in patients]


def _write_case(context: Context, row: int, cells: Sequence[Cell], folder: Path) -> Path:
    store = context.store
    case = store.volume_id(row)
    predictions: dict[str, Any] = {
        f"prediction__{cell.arm.name}": read_picture(context, cell, row) for cell in cells
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        image=read_image(store, row, context.suite.normalise)[0, 0].numpy(),
        reference=read_whole(store, row, LABELS)[0].astype(np.int32),
        **predictions,
        arms=np.array([cell.arm.name for cell in cells]),
        dice=np.array([_dice(context, cell, case) for cell in cells]),
        patient=np.array(store.cell("subject", row)),
        case=np.array(case),
        measure=np.array(cells[0].measure),
        n_labelled=np.array(cells[0].n_labelled),
        seed=np.array(cells[0].seed),
        spacing=np.array(store.cell("spacing", row)),
        class_values=np.array(list(context.classes)),
        class_names=np.array(list(context.classes.values())),
    )
    path = folder / f"{case}.npz"
    write_bytes(path, buffer.getvalue())
    return path


def _dice(context: Context, cell: Cell, case: str) -> float:
    table = read_cell(context.out, context.key(cell))
    own = table[(table["case"] == case) & (table["metric"] == "dice") & (table["label"] == MEAN_FOREGROUND)]
    return float(own["value"].iloc[0])
