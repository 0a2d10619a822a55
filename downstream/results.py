"""results.csv: the one tidy table every figure and sentence of a report comes from; finished cells, stored atomically.

A row is a measurement. Conventions of the columns (COLUMNS):
`arm` name of the arm ("scratch", or the run's directory name); `run` path of the run or file as the user typed it,
empty for scratch; `pretrain_seed` the run's seed, empty when unknown; `method` equal for pre-training runs whose
recipes differ in their seed alone (downstream.methods), empty for scratch and in tables older than the column; `init`
what was loaded: "random", "encoder" or "encoder+decoder"; `schedule` name of the measure in the suite ("probe",
"finetune", ...), and for rows of a search on validation patients its settings too, "finetune lr=0.01"; `n_labelled`
labelled patients; `subset` index of the labelled subset and `seed` of the training, one crossed factor (subset ==
seed); `step` optimiser steps when it was scored (0 where nothing is trained): the last of a training is its score,
those before it belong to learning speed; `split` "test", or "validation" for the search, which no figure of the report
may use; `patient`, `case`; `domain` of a test patient (downstream.domains), empty where the split tells none apart;
`label` the class name or MEAN_FOREGROUND; `metric` "dice", "hd95", "assd" (mm), ..., or "prediction" and "truth" of a
volume, from which metrics of the whole set are computed (downstream.jackknife); `value`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ssl3d.files import write_text

COLUMNS = (
    "suite",
    "dataset",
    "arm",
    "run",
    "pretrain_seed",
    "method",
    "init",
    "schedule",
    "n_labelled",
    "subset",
    "seed",
    "step",
    "split",
    "patient",
    "case",
    "domain",
    "label",
    "metric",
    "value",
)
MEAN_FOREGROUND = "mean_foreground"
CELL_COLUMNS = ("step", "patient", "case", "label", "metric", "value")  # what a cell measures; others say which cell
CELLS = "cells"  # OUT/cells/<hash>.csv
RESULTS_FILE = "results.csv"

_TEXT = {"patient": str, "case": str, "label": str, "metric": str}


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """A table as CSV, atomically; floats keep every digit, so that a resumed evaluation is equal to the bit."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def write_cell(out: Path, key: str, rows: Iterable[dict[str, Any]]) -> None:
    """Store the measurements (CELL_COLUMNS) of one finished cell in OUT/cells/<key>.csv."""
    write_csv(pd.DataFrame(list(rows), columns=list(CELL_COLUMNS)), cell_path(out, key))


def cell_path(out: Path, key: str) -> Path:
    return out / CELLS / f"{key}.csv"


def read_cell(out: Path, key: str) -> pd.DataFrame:
    """The measurements of a finished cell; patients and cases stay text ("007" is no number)."""
    return pd.read_csv(cell_path(out, key), dtype=_TEXT, keep_default_na=False, na_values={"value": [""]})


def is_finished(out: Path, key: str) -> bool:
    return cell_path(out, key).exists()


def write_results(table: pd.DataFrame, out: Path) -> Path:
    """OUT/results.csv with exactly COLUMNS, in the table's order. Returns its path."""
    path = out / RESULTS_FILE
    write_csv(table[list(COLUMNS)], path)
    return path


def read_results(path: Path) -> pd.DataFrame:
    """A results.csv (or the directory that holds it). Raises FileNotFoundError or ValueError naming the file."""
    path = path / RESULTS_FILE if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a directory written by ssl3d evaluate")
    words = ("suite", "dataset", "arm", "run", "method", "init", "schedule", "split", "domain")
    text = dict.fromkeys(words, str) | _TEXT
    table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values={"value": [""], "pretrain_seed": [""]})
    for name in ("method", "domain"):  # an older evaluation: every arm is a checkpoint by itself, of one test set
        table[name] = table[name] if name in table.columns else ""
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"{path} has no column '{missing[0]}': it was not written by ssl3d evaluate")
    return table
