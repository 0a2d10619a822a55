"""Tables beside scans (participants.tsv, lists): which columns are targets, numbers or classes; what each row says."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = (".csv", ".tsv", ".parquet")
_MISSING = frozenset({"", "n/a", "na", "nan", "null"})
_MAX_CLASSES = 50  # different texts of a column; more are remarks, not classes
_ALL_DIFFER = 8  # from so many rows on, a text that never repeats names the row, it does not classify it
_IDENTIFYING = frozenset(re.findall(r"\w+", "name surname birth birthdate birthday dob date address email mrn uid"))
_DECIMAL_COMMA = r"^\s*(-?\d+),(\d+)\s*$"  # in tables that separate by semicolons


@dataclass
class Row:
    """`number`: line of a CSV (the header is 1), place of a parquet's row (from 1). `cells` without missing ones.

    `problem`: what makes it unusable, "" when nothing does.
    """

    number: int
    cells: dict[str, str]
    targets: dict[str, float | str] = field(default_factory=dict)
    problem: str = ""


@dataclass
class Table:
    """`columns` as named in the file, stripped; `notes`: columns that were left out, a sentence each."""

    file: Path
    columns: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    _places: dict[str, Row] = field(default_factory=dict)

    def by(self, column: str) -> Table:
        """Itself, its rows to be found by their value of a column."""
        self._places = {row.cells[column]: row for row in self.rows if column in row.cells}
        return self

    def row(self, *values: str) -> Row | None:
        """The row of the first of the values that has one."""
        return next((self._places[value] for value in values if value in self._places), None)


def read_table(file: Path, keys: Collection[str]) -> Table:
    """Columns outside `keys` are targets. Raises ValueError in one sentence when it is no table at all."""
    columns, records = _read(file)
    first = 1 if file.suffix.lower() == ".parquet" else 2
    rows = []
    for number, record in enumerate(records, start=first):
        cells = {c: text.strip() for c, text in zip(columns, record) if text.strip().lower() not in _MISSING}
        rows.append(Row(number, cells))
    table = Table(file, columns, rows)
    for column in columns:
        if column not in keys:
            _enter_targets(table, column)
    return table


def _read(file: Path) -> tuple[list[str], list[list[str]]]:
    """(columns, texts of each row)"""
    import pandas as pd

    try:
        if file.suffix.lower() == ".parquet":
            frame = pd.read_parquet(file)
            frame = frame.astype(object).where(frame.notna(), "").map(str)
        else:
            with file.open(encoding="utf-8-sig") as lines:
                heading = lines.readline()
            separator = "\t" if "\t" in heading else ";" if ";" in heading and "," not in heading else ","
            frame = pd.read_csv(
                file, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False
            )
            frame = frame.where(frame.notna(), "")
            if separator == ";":
                frame = frame.replace(_DECIMAL_COMMA, r"\1.\2", regex=True)
    except (ValueError, OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{file} cannot be read as a table: {' '.join(str(error).split())[:160]}") from error
    columns = [str(name).strip() for name in frame.columns]
    if len(set(columns)) < len(columns):
        raise ValueError(f"{file} has two columns of one name: rename one of them")
    return columns, frame.to_numpy().tolist()


def number_of(text: str) -> float | None:
    """The finite number that a cell says, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _enter_targets(table: Table, column: str) -> None:
    """Give the rows the column's values as targets: numbers where most are numbers, else classes."""
    filled = [row for row in table.rows if column in row.cells]
    numbers = {id(row): number_of(row.cells[column]) for row in filled}
    if 2 * sum(value is not None for value in numbers.values()) > len(filled):
        for row in filled:
            value = numbers[id(row)]
            if value is None:
                row.problem = f"column '{column}' holds a text here and numbers in most rows"
            else:
                row.targets[column] = value
        return
    texts = [row.cells[column] for row in filled]
    reason = _no_classes(column, texts)
    if reason:
        table.notes.append(f"column '{column}' of {table.file.name} is no target: {reason}")
        return
    for row, text in zip(filled, texts):
        row.targets[column] = text


def _no_classes(column: str, texts: list[str]) -> str:
    """Why the texts of a column are no classes, "" when they are."""
    words = set(re.split(r"[^a-z]+", column.lower()))
    different = len(set(texts))
    if words & _IDENTIFYING:
        return "its name says that it identifies"
    if different > _MAX_CLASSES:
        return f"it holds {different} different texts, classes are at most {_MAX_CLASSES}"
    if len(texts) >= _ALL_DIFFER and different == len(texts):
        return "no text in it repeats"
    return ""
