"""What every cell of an evaluation shares, and what names a cell: plain types, so that any process can compute it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from downstream.arms import Arm
from downstream.measure import Choice, Measure, choice_words
from downstream.suite import Suite, target_of
from downstream.volume import VolumeTarget
from ssl3d.data.format import LABELS, LABELS_ORIGINAL
from ssl3d.data.store import Store, open_store

CELL_VERSION = 4  # raised when a cell's values change for equal settings, so that old cells are not taken for new ones
TEST, VALIDATION = "test", "validation"
WORK = "work"  # OUT/work: what lasts as long as the evaluation, a training under way and features of frozen encoders


@dataclass(frozen=True)
class Cell:
    """One training and its scores: `labelled` patients in, `scored` patients out, by the suite's measure of that name.

    `split` says which patients are scored: TEST, or VALIDATION for a search. `choice`: settings found by the search.
    """

    measure: str
    arm: Arm
    n_labelled: int
    seed: int
    labelled: tuple[str, ...]
    scored: tuple[str, ...]
    split: str
    choice: Choice = ()
    pictures: tuple[int, ...] = ()  # store rows whose prediction is kept for the report


@dataclass(frozen=True)
class Context:
    """A checked evaluation. `rows` {patient: labelled store rows}; `classes` {label value: name}, in training order."""

    suite: Suite
    out: Path
    rows: dict[str, tuple[int, ...]]
    classes: dict[int, str]
    ignore: int | None
    store_digest: str
    target: VolumeTarget | None = None  # of a suite that judges whole volumes; it has no `classes`
    numerics: str = field(default_factory=lambda: numerics())  # of the process that plans; workers must have the same

    @property
    def volume_target(self) -> VolumeTarget:
        """The target of a suite that has one."""
        assert self.target is not None, "measures of volumes are refused without a target (downstream.suite)"
        return self.target

    @property
    def strata(self) -> dict[str, int] | None:
        """{patient: class} by which labelled subsets are drawn; None where there are no classes of volumes."""
        return None if self.target is None else self.target.strata()

    @property
    def store(self) -> Store:
        return _open(self.suite.store)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def measure(self, cell: Cell) -> Measure:
        """The suite's measure that computes a cell."""
        return self.suite.measures[cell.measure]

    def rows_of(self, patients: tuple[str, ...]) -> list[int]:
        """Store rows of all labelled volumes of some patients, patient by patient."""
        return [row for patient in patients for row in self.rows[patient]]

    def key(self, cell: Cell) -> str:
        """The name of a cell's files: a hash of all that decides its values, and of nothing else.

        Not the arm's name, nor the number of workers: an evaluation with one more run, or begun elsewhere, finds what
        is finished. Of the software, torch's minor version and the kind of device count, since they change sums;
        ssl3d's version does not: CELL_VERSION is raised where ours does.
        """
        suite = self.suite
        measure = self.measure(cell)
        shared = ["metrics", "seed", "normalise", "precision", "overlap", "threads"]
        shared += ["nsd_mm"] if "nsd" in suite.metrics else []
        content: dict[str, Any] = {
            "version": [CELL_VERSION, self.numerics],
            "suite": {name: getattr(suite, name) for name in shared},
            "classes": list(self.classes.items()),
            "store": self.store_digest,
            "measure": [target_of(measure), measure.settings()],
            "arm": cell.arm.digest,
            "cell": [cell.seed, cell.labelled, cell.scored, cell.split, cell.choice],
        }
        if self.target is not None:
            content["target"] = self.target.describe()
        text = json.dumps(content, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@lru_cache(maxsize=4)
def _open(path: str) -> Store:
    return open_store(path)


def numerics() -> str:
    """What decides the last digits of a training on this machine: "torch 2.6 on cuda"."""
    major, minor = torch.__version__.split(".")[:2]
    return f"torch {major}.{minor} on {'cuda' if torch.cuda.is_available() else 'cpu'}"


def store_digest(store: Store, rows: Sequence[int] | None = None) -> str:
    """Changes when a volume of the store does, or its label; `rows`: of these volumes alone."""
    index = store.index if rows is None else store.index.loc[list(rows)]
    table = index[["id", "fingerprint", "bytes", "has_label", "has_label_original"]].sort_values("id")
    state = hashlib.blake2b(table.to_csv(index=False).encode(), digest_size=12)
    for kind, has in ((LABELS, "has_label"), (LABELS_ORIGINAL, "has_label_original")):
        for row in table.index[table[has].astype(bool)]:
            state.update(json.dumps(store.digest(int(row), kind), sort_keys=True).encode())
    return state.hexdigest()


def describe(cell: Cell) -> str:
    """A cell in the words of a progress line."""
    what = f"{cell.measure} {cell.arm.name}, {cell.n_labelled} labelled, seed {cell.seed}"
    return what if cell.split == TEST else f"{what}, {choice_words(cell.choice)} (search)"
