"""Which patients are for what: the split file, and the nested labelled subsets drawn from its pool.

A split file is JSON: {"pool": [patients], "validation": [...], "test": [...]}; further fields are kept for others and
ignored here. Patients are a store's subjects, raw or hashed. A pool patient may lend his labels; validation patients
choose learning rates; test patients are read once, at the end of each cell. `test` may be {domain: [patients]}: sites,
scanners or contrasts, which the report tells apart (downstream.domains).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl3d.data.subjects import matching
from ssl3d.files import write_json
from ssl3d.seeding import numpy_generator

FIELDS = ("pool", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Patients by purpose, each tuple sorted; no patient serves two purposes.

    `domains` {name: the test patients of it}, sorted; empty where they are not told apart.
    """

    pool: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    domains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def domain_of(self, patient: str) -> str:
        """Where a test patient comes from; empty where nothing is told apart."""
        return next((name for name, own in self.domains.items() if patient in own), "")

    def renamed(self, names: Mapping[str, str]) -> Split:
        """The split of the patients in `names` alone, under the names it gives."""

        def part(patients: Iterable[str]) -> tuple[str, ...]:
            return tuple(sorted(names[p] for p in patients if p in names))

        domains = {name: part(own) for name, own in self.domains.items()}
        return Split(part(self.pool), part(self.validation), part(self.test), {k: v for k, v in domains.items() if v})

    def save(self, path: Path) -> None:
        """Write the split file."""
        content: dict[str, Any] = {name: list(getattr(self, name)) for name in FIELDS}
        if self.domains:
            content["test"] = {name: list(own) for name, own in self.domains.items()}
        write_json(path, content, indent=1)


def load_split(path: Path) -> Split:
    """Read and check a split file. Raises FileNotFoundError or ValueError naming it, the field and the patient."""
    if not path.exists():
        raise FileNotFoundError(f"there is no split file {path}: write one with the fields pool, validation and test")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"the split file {path} is not JSON ({error})") from None
    domains = _domains(content, path)
    if domains:
        content["test"] = [patient for own in domains.values() for patient in own]
    for name in FIELDS:
        patients = content.get(name) if isinstance(content, dict) else None
        if not isinstance(patients, list) or not all(isinstance(p, str) for p in patients):
            raise ValueError(f"the split file {path} needs a field '{name}': a list of patients (texts)")
        if len(set(patients)) < len(patients):
            twice = next(p for p in patients if patients.count(p) > 1)
            raise ValueError(f"the split file {path} names patient '{twice}' twice in '{name}'")
    pool, validation, test = (tuple(sorted(content[name])) for name in FIELDS)
    split = Split(pool, validation, test, domains)
    for one, other in (("pool", "validation"), ("pool", "test"), ("validation", "test")):
        both = sorted(set(getattr(split, one)) & set(getattr(split, other)))
        if both:
            raise ValueError(
                f"the split file {path} has {len(both)} patient(s) in both '{one}' and '{other}', first '{both[0]}': "
                "each patient serves one purpose"
            )
    return split


def _domains(content: Any, path: Path) -> dict[str, tuple[str, ...]]:
    """{domain: its test patients} where a split file tells them apart. Raises ValueError naming it and the domain."""
    test = content.get("test") if isinstance(content, dict) else None
    if not isinstance(test, dict):
        return {}
    for name, patients in test.items():
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"the split file {path}: '{name}' in 'test' must be letters, digits, '_', '.' and '-'")
        if not isinstance(patients, list) or not patients or not all(isinstance(p, str) for p in patients):
            raise ValueError(f"the split file {path}: '{name}' in 'test' must be a list of patients (texts)")
    return {name: tuple(sorted(test[name])) for name in sorted(test)}


def resolve(split: Split, subjects: Collection[str], name: str | Path, store: str | Path) -> Split:
    """The split in the subjects of a store, whichever of the two is hashed.

    `subjects`: those of the store that have labels. Raises ValueError with the `name` of the split and the first
    patient without a labelled volume, or the first two that are the same subject.
    """
    found: dict[str, str] = {}
    for part in FIELDS:
        patients = getattr(split, part)
        own = {p: p if p in subjects else next(iter(matching(subjects, [p])), None) for p in patients}
        absent = [p for p in patients if own[p] is None]
        if absent:
            raise ValueError(
                f"the split {name} names {len(absent)} patient(s) in '{part}' without a labelled volume in "
                f"{store}, first '{absent[0]}': correct the split or the store"
            )
        found |= {p: subject for p, subject in own.items() if subject is not None}
    if len(set(found.values())) < len(found):
        subject = next(s for s in found.values() if list(found.values()).count(s) > 1)
        twins = [p for p, s in found.items() if s == subject]
        raise ValueError(f"the split {name} names one subject twice, as '{twins[0]}' and '{twins[1]}'")
    return split.renamed(found)


def draw_split(patients: Collection[str], validation: int, test: int, seed: int) -> Split:
    """A random split with so many validation and test patients; the rest is the pool.

    Raises ValueError when no pool is left.
    """
    names = sorted(patients)
    if validation < 0 or test < 0 or validation + test >= len(names):
        raise ValueError(f"{validation} validation and {test} test patients leave none of {len(names)} for the pool")
    order = [names[i] for i in numpy_generator(seed, "split").permutation(len(names))]
    parts = order[test + validation :], order[test : test + validation], order[:test]
    pool, held, tested = (tuple(sorted(part)) for part in parts)
    return Split(pool, held, tested)


def labelled_subset(
    pool: Sequence[str], n: int, seed: int, subset: int | str, strata: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """The n labelled patients of subset number `subset`: a pure function of (pool, seed, subset), nested in n.

    The subset of 2 patients lies inside the subset of 4 with the same number, so that a curve compares amounts of
    labels and not luck of the draw. `strata` {patient: class}: one patient of every class comes first, in a drawn
    order, then each class follows in proportion to the pool, at every n. Raises ValueError when the pool is smaller
    than n.
    """
    if not 1 <= n <= len(pool):
        raise ValueError(f"n_labelled {n} needs between 1 and {len(pool)} patients: the split's pool has {len(pool)}")
    names = sorted(pool)
    order = [names[i] for i in numpy_generator(seed, "subset", subset).permutation(len(names))]
    return tuple((order if strata is None else _stratified(order, strata))[:n])


def _stratified(order: Sequence[str], strata: Mapping[str, int]) -> list[str]:
    """The patients in an order that holds every class as early as can be, then each in proportion."""
    queues: dict[int, list[str]] = {}
    for patient in order:
        queues.setdefault(strata[patient], []).append(patient)
    share = {stratum: len(patients) / len(order) for stratum, patients in queues.items()}
    found = [patients.pop(0) for patients in queues.values()]
    taken = dict.fromkeys(queues, 1)
    while len(found) < len(order):
        left = [stratum for stratum in queues if queues[stratum]]
        most = max(left, key=lambda stratum: share[stratum] * (len(found) + 1) - taken[stratum])  # of equals the first
        found.append(queues[most].pop(0))
        taken[most] += 1
    return found
