"""How a suite finds its patients: a split file, a shipped one, or a rule that a data set's publication states.

`split: FILE` or `split: NAME` of recipes/downstream/splits; or a mapping whose `rule` is

- file: `{rule: file, file: FILE|NAME}`, the same with a say in absent patients;
- folds: nnU-Net's cross-validation over the labelled patients of the store (Isensee et al., Nature Methods 2021);
- table: a column of a table that comes with the data (TotalSegmentator's meta.csv);
- lists: the lists of a dataset.json that comes with the data (AMOS).

`absent: leave_out` goes on with the patients that the store has, and the report says so; `refuse` is the default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold

from downstream.splits import FIELDS, Split, load_split, resolve
from ssl3d import schema
from ssl3d.config import find_split
from ssl3d.data.subjects import matching
from ssl3d.schema import ConfigError, did_you_mean
from ssl3d.seeding import numpy_generator

KEY, RULE = "split", "rule"
Absent = Literal["refuse", "leave_out"]
Rows = Mapping[str, Sequence[int]]  # {patient: his labelled volumes}


class SplitRule(Protocol):
    """A way to find the patients."""

    def faults(self) -> list[str]:
        """Values out of range, a sentence each."""

    def words(self) -> str:
        """What it is called in messages."""

    def split(self, rows: Rows) -> Split:
        """The split, patients as their source calls them. Raises ValueError, FileNotFoundError naming the source."""


@dataclass(frozen=True)
class FileRule:
    """The split file `file`, or the shipped one of that name."""

    file: str
    absent: Absent = "refuse"

    def faults(self) -> list[str]:
        """See SplitRule.faults."""
        return []

    def words(self) -> str:
        """See SplitRule.words."""
        return self.file

    def split(self, rows: Rows) -> Split:
        """See SplitRule.split."""
        return load_split(find_split(self.file))


@dataclass(frozen=True)
class FoldsRule:
    """Fold number `fold` of nnU-Net's `folds` is for testing, the others are pool; `seed` is nnU-Net's.

    Patients are shuffled in the order of their names, as nnU-Net does with cases: the folds are nnU-Net's own where
    every case is a patient. `cases`: labelled volumes of the published set; with another number the folds would be
    others. `validation` patients are drawn from the pool.
    """

    folds: int = 5
    fold: int = 0
    seed: int = 12345
    validation: int = 0
    cases: int | None = None

    def faults(self) -> list[str]:
        """See SplitRule.faults."""
        rules = [
            (self.folds > 1, "folds", self.folds, "above 1"),
            (0 <= self.fold < self.folds, "fold", self.fold, f"one of 0 to {self.folds - 1}"),
            (self.validation >= 0, "validation", self.validation, "0 or more"),
        ]
        return [f"{KEY}.{name} is {value}; it must be {rule}" for holds, name, value, rule in rules if not holds]

    def words(self) -> str:
        """See SplitRule.words."""
        return f"by fold {self.fold} of {self.folds}"

    def split(self, rows: Rows) -> Split:
        """See SplitRule.split."""
        found = sum(map(len, rows.values()))
        if self.cases is not None and found != self.cases:
            raise ValueError(
                f"{KEY}.cases is {self.cases}, the labelled volumes of the published set, but the store has {found}: "
                f"convert the whole set, or say {KEY}.cases=null for folds of what is there"
            )
        if len(rows) < self.folds:
            raise ValueError(f"{KEY}.folds is {self.folds}, but the store has {len(rows)} labelled patients: lower it")
        names = np.array(sorted(rows))
        _, test = list(KFold(self.folds, shuffle=True, random_state=self.seed).split(names))[self.fold]
        tested = set(names[test].tolist())
        return _with_validation([n for n in names.tolist() if n not in tested], tested, self.validation, self.seed)


@dataclass(frozen=True)
class TableRule:
    """Patients by the value of `column` in a CSV `table`; `id` names them, the other three say what values mean."""

    table: str
    id: str
    column: str
    pool: list[str]
    validation: list[str]
    test: list[str]
    absent: Absent = "refuse"

    def faults(self) -> list[str]:
        """See SplitRule.faults."""
        return []

    def words(self) -> str:
        """See SplitRule.words."""
        return f"by the table {self.table}"

    def split(self, rows: Rows) -> Split:
        """See SplitRule.split."""
        if not Path(self.table).is_file():
            raise FileNotFoundError(f"{KEY}.table: there is no file {self.table}: it comes with the data set")
        table = pd.read_csv(self.table, sep=None, engine="python", dtype=str)
        for name in (self.id, self.column):
            if name not in table.columns:
                raise ValueError(f"{KEY}: {self.table} has no column '{name}'{did_you_mean(name, list(table.columns))}")
        pool, validation, test = (
            tuple(sorted(table.loc[table[self.column].isin(getattr(self, f)), self.id].unique())) for f in FIELDS
        )
        return Split(pool, validation, test)


@dataclass(frozen=True)
class ListsRule:
    """Patients by the lists of images in a dataset.json `file`: its list `pool`, its list `test`.

    `match`: regular expression of the patients meant, null: all. `validation` patients are drawn from the pool.
    """

    file: str
    pool: str = "training"
    test: str = "validation"
    match: str | None = None
    validation: int = 0
    seed: int = 0
    absent: Absent = "refuse"

    def faults(self) -> list[str]:
        """See SplitRule.faults."""
        try:
            re.compile(self.match or "")
        except re.error as error:
            return [f"{KEY}.match is '{self.match}'; it must be a regular expression ({error})"]
        return [] if self.validation >= 0 else [f"{KEY}.validation is {self.validation}; it must be 0 or more"]

    def words(self) -> str:
        """See SplitRule.words."""
        return f"by the lists of {self.file}"

    def split(self, rows: Rows) -> Split:
        """See SplitRule.split."""
        if not Path(self.file).is_file():
            raise FileNotFoundError(f"{KEY}.file: there is no file {self.file}: it comes with the data set")
        try:
            content = json.loads(Path(self.file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{KEY}.file: {self.file} is not JSON ({error})") from None
        pool, test = (self._patients(content, name) for name in (self.pool, self.test))
        return _with_validation(pool, test, self.validation, self.seed)

    def _patients(self, content: Any, name: str) -> list[str]:
        entries = content.get(name) if isinstance(content, Mapping) else None
        if not isinstance(entries, list):
            raise ValueError(f"{KEY}: {self.file} has no list '{name}'")
        images = [str(e.get("image")) if isinstance(e, Mapping) else str(e) for e in entries]
        patients = [Path(image).name.partition(".")[0] for image in images]
        return [p for p in patients if self.match is None or re.search(self.match, p)]


RULES: dict[str, type] = {"file": FileRule, "folds": FoldsRule, "table": TableRule, "lists": ListsRule}


def faults(value: Any) -> list[str]:
    """What is wrong with a suite's `split`, a sentence each."""
    try:
        rule(value)
    except ConfigError as error:
        return error.faults
    return []


def rule(value: str | Mapping[str, Any]) -> SplitRule:
    """The rule that a suite's `split` states. Raises ConfigError."""
    if isinstance(value, str):
        return FileRule(value)
    name = value.get(RULE)
    if name not in RULES:
        raise ConfigError([f"{KEY}.{RULE} is {name!r}; it must be one of {', '.join(RULES)}"])
    given = {k: v for k, v in value.items() if k != RULE}
    completed, found = schema.check_fields(given, schema.parameters(RULES[name]), KEY)
    if found:
        raise ConfigError(found)
    made = cast(SplitRule, RULES[name](**completed))
    if found := made.faults():
        raise ConfigError(found)
    return made


def words(value: str | Mapping[str, Any]) -> str:
    """A suite's `split` in a message: 'split.json', 'by fold 0 of 5'."""
    return rule(value).words()


def find_patients(value: str | Mapping[str, Any], rows: Rows, store: str) -> tuple[Split, list[str]]:
    """(the split of a suite in the subjects of its store, sentences for the report).

    `rows`: labelled volumes by patient. Raises ValueError or FileNotFoundError naming the source and the patient.
    """
    chosen = rule(value)
    split = chosen.split(rows)
    notes = []
    if getattr(chosen, "absent", "refuse") == "leave_out":
        split, gone = _leave_out(split, rows)
        if gone:
            notes.append(
                f"{len(gone)} patients of the split {chosen.words()} have no labels in {store}, first '{gone[0]}': "
                "the sets are not the published ones."
            )
    return resolve(split, rows, chosen.words(), store), notes


def _leave_out(split: Split, subjects: Collection[str]) -> tuple[Split, list[str]]:
    """(the split without patients that have no labels in the store, those)."""
    gone = [p for name in FIELDS for p in getattr(split, name) if p not in subjects and not matching(subjects, [p])]
    return split.renamed({p: p for name in FIELDS for p in getattr(split, name) if p not in set(gone)}), gone


def _with_validation(pool: Sequence[str], test: Collection[str], count: int, seed: int) -> Split:
    """Draw `count` validation patients from the pool: a pure function of its names and the seed."""
    names = sorted(pool)
    if count >= len(names) and count:
        raise ValueError(f"{KEY}.validation is {count}, but the pool has {len(names)} patients: lower it")
    order = numpy_generator(seed, "validation").permutation(len(names))[:count]
    drawn = {names[i] for i in order}
    return Split(tuple(n for n in names if n not in drawn), tuple(sorted(drawn)), tuple(sorted(test)))
