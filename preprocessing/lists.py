"""A list of scans: a CSV, TSV or parquet table, a scan a row, paths relative to the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from preprocessing.modality import from_name
from preprocessing.refusal import Refusal
from preprocessing.tables import SUFFIXES, Row, read_table
from ssl3d.data.format import MODALITIES

COLUMNS = ("path", "subject", "session", "modality", "label_path")


@dataclass
class Listed:
    """One row: a scan (a file, or the folder of a series), and what the list says about it; "" or None: nothing.

    `where`: "row 7"; `shown`: as the user would find it; `name`: the same without the path. `problem`: why the row
    cannot be used.
    """

    path: Path
    where: str
    shown: str
    name: str
    subject: str = ""
    session: str = ""
    modality: str | None = None
    label: Path | None = None
    targets: dict[str, float | str] = field(default_factory=dict)
    problem: Refusal | None = None


@dataclass
class ScanList:
    """`notes`: what the user should know of its columns."""

    rows: list[Listed]
    notes: list[str]


def is_list(path: Path) -> bool:
    """By its extension."""
    return path.suffix.lower() in SUFFIXES


def read_list(file: Path, typed: str) -> ScanList:
    """The rows of a list that the user `typed` so. A row that cannot be used says so; the others count.

    Raises ValueError in one sentence when it is no table, has no column `path`, or no row.
    """
    table = read_table(file, COLUMNS)
    if "path" not in table.columns:
        close = get_close_matches("path", table.columns, n=1, cutoff=0.5)
        hint = f"rename '{close[0]}'" if close else f"its columns are {', '.join(table.columns[:8])}"
        raise ValueError(f"list {file} has no column 'path': {hint}; give one row a scan, paths relative to the list")
    if not table.rows:
        raise ValueError(f"list {file} has no rows: give one a scan")
    notes = list(table.notes)
    for column in table.columns:
        close = get_close_matches(column, COLUMNS, n=1, cutoff=0.65)
        if column not in COLUMNS and close:
            notes.append(f"column '{column}' of {file.name} is taken as a target: the list's own is '{close[0]}'")
    first: dict[Path, int] = {}
    return ScanList([_listed(row, file, typed, first) for row in table.rows], notes)


def _listed(row: Row, file: Path, typed: str, first: dict[Path, int]) -> Listed:
    """`first`: the row that a path was met in."""
    folder = file.parent
    where = f"row {row.number}"
    stated = row.cells.get("path", "")
    listed = Listed(
        path=folder / stated,
        where=where,
        shown=f"{typed} {where}" + (f" ({stated})" if stated else ""),
        name=f"{file.name} {where}",
        subject=row.cells.get("subject", ""),
        session=row.cells.get("session", ""),
        targets=dict(row.targets),
    )
    modality = row.cells.get("modality", "")
    label = row.cells.get("label_path", "")
    if not stated:
        listed.problem = Refusal("bad_row", f"{where} has no path")
    elif row.problem:
        listed.problem = Refusal("bad_row", f"{where}: {row.problem}")
    elif not listed.path.exists():
        listed.problem = Refusal("missing_file", f"{where} names {listed.path.name}, which is not there")
    elif (earlier := first.setdefault(listed.path.resolve(), row.number)) != row.number:
        listed.problem = Refusal("listed_twice", f"{where} names the scan of row {earlier} again")
    elif modality and _modality(modality) is None:
        listed.problem = Refusal("bad_row", f"{where}: modality '{modality}' is none of {', '.join(MODALITIES)}")
    elif label and not (folder / label).exists():
        listed.problem = Refusal("missing_file", f"{where} names the label {Path(label).name}, which is not there")
    else:
        listed.modality = _modality(modality) if modality else None
        listed.label = folder / label if label else None
    return listed


def _modality(text: str) -> str | None:
    """A modality of the store, or what a sequence's name says."""
    return text.lower() if text.lower() in MODALITIES else from_name(text)
