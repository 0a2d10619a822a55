"""Volume targets: what a store's index says of whole volumes, as classes or numbers to be predicted.

A target is a column of the CSV file given to the conversion (`--targets`): each volume's number, or the number of its
class. A volume without a finite value is not there for an evaluation.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downstream.inference import pad_to, window_starts
from downstream.splits import Split
from downstream.volume_metrics import PREDICTION, TRUTH, VALUE
from ssl3d.data.objects import open_objects
from ssl3d.data.store import Store
from ssl3d.regions import Size3
from ssl3d.schema import did_you_mean

if TYPE_CHECKING:
    from downstream.context import Context

Kind = Literal["classification", "regression"]
CODES_FILE = "conversion.json"  # where the conversion keeps the names of a target's classes
MOST_CLASSES = 10  # of whole numbers without names, seen twice each on average; more are taken for measurements


@dataclass(frozen=True)
class VolumeTarget:
    """A target of a store. `classes`: names, and `codes` their stored numbers, by class index; both empty: regression.

    `values` {store row: stored value} of the volumes that have one; `patients` {patient: those of his rows, in the
    order of volume ids}; `column`: its place in `RegionBatch.target`.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    codes: tuple[float, ...]
    values: dict[int, float]
    patients: dict[str, tuple[int, ...]]
    column: int

    @property
    def labels(self) -> tuple[str, ...]:
        """What a prediction consists of: a probability a class, or one value."""
        return self.classes or (VALUE,)

    def truth(self, row: int) -> float:
        """A volume's class index, or its value."""
        value = self.values[row]
        return float(self.codes.index(value)) if self.classes else value

    def strata(self) -> dict[str, int] | None:
        """{patient: class index}, of his first volume where they differ; None for a regression."""
        return {p: int(self.truth(rows[0])) for p, rows in self.patients.items()} if self.classes else None

    def weighted(self, patients: Iterable[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(truths, weights) of all volumes of some patients; the weights of a patient sum to one, as he is sampled."""
        pairs = [(self.truth(row), 1 / len(self.patients[p])) for p in patients for row in self.patients[p]]
        truth, weight = np.array(pairs, dtype=np.float64).T
        return truth, weight

    def describe(self) -> list[Any]:
        """What decides the values of a cell: plain types that change when the target does."""
        content = json.dumps(sorted(self.values.items()))
        digest = hashlib.blake2b(content.encode(), digest_size=12).hexdigest()
        return [self.name, self.kind, list(self.classes), list(self.codes), digest]


def volume_target(store: Store, name: str, kind: Kind | None = None) -> VolumeTarget:
    """The target `name` of a store; its kind by its values when None.

    Classes are those that the conversion named, or else whole numbers, at most MOST_CLASSES of them.
    Raises ValueError, a sentence each: no such target, all volumes equal, classes that are no whole numbers, or a
    regression of classes with names.
    """
    targets = [json.loads(text) for text in store.column("targets")]
    names = sorted({known for own in targets for known in own})
    if name not in names:
        known = f"it has {', '.join(names)}" if names else "it has none: convert with --targets"
        raise ValueError(f"target: the store {store.path} has no target '{name}'{did_you_mean(name, names)}; {known}")
    values = {row: float(own[name]) for row, own in enumerate(targets) if math.isfinite(own.get(name, math.nan))}
    distinct = sorted(set(values.values()))
    if len(distinct) < 2:
        raise ValueError(f"target '{name}' of {store.path} has the same value in every volume: nothing is to be told")
    named = _class_names(store, name)
    whole = all(value.is_integer() for value in distinct)
    if kind is None:
        few = whole and len(distinct) <= min(MOST_CLASSES, len(values) // 2)
        kind = "classification" if named or few else "regression"
    if kind == "classification" and not whole:
        odd = next(value for value in distinct if not value.is_integer())
        raise ValueError(
            f"target_kind is classification, but '{name}' of {store.path} holds values such as {odd:g}: say "
            "regression, or convert it as whole numbers or names"
        )
    if kind == "regression" and named:
        raise ValueError(
            f"target_kind is regression, but '{name}' of {store.path} has names of classes such as "
            f"'{next(iter(named.values()))}': say classification"
        )
    codes = tuple(distinct) if kind == "classification" else ()
    classes = tuple(named.get(int(code), f"{code:g}") for code in codes)
    return VolumeTarget(name, kind, classes, codes, values, _by_patient(store, values), names.index(name))


def _class_names(store: Store, name: str) -> dict[int, str]:
    """{number: name} of a target's classes, as far as the conversion was given names."""
    objects = open_objects(store.path)
    if not objects.exists(CODES_FILE):
        return {}
    codes = json.loads(objects.get(CODES_FILE)).get("codes", {})
    return {int(number): text for text, number in codes.get(f"target {name}", {}).items()}


def _by_patient(store: Store, rows: Iterable[int]) -> dict[str, tuple[int, ...]]:
    found: dict[str, list[int]] = {}
    for row in sorted(rows, key=store.volume_id):
        found.setdefault(str(store.cell("subject", row)), []).append(row)
    return {patient: tuple(own) for patient, own in found.items()}


def volume_rows(context: Context, patient: str, row: int, prediction: NDArray[np.floating]) -> list[dict[str, Any]]:
    """Rows (results.CELL_COLUMNS) of one volume: its truth and `prediction` (K,), probabilities or one value."""
    target = context.volume_target
    about = {"patient": patient, "case": context.store.volume_id(row)}
    rows = [
        about | {"label": label, "metric": PREDICTION, "value": float(value)}
        for label, value in zip(target.labels, prediction)
    ]
    return [*rows, about | {"label": VALUE, "metric": TRUTH, "value": target.truth(row)}]


@torch.no_grad()
def mean_over_windows(
    network: Callable[[Tensor], Tensor], image: Tensor, window: Size3, overlap: float, device: torch.device | str
) -> NDArray[np.float64]:
    """The mean over the windows that cover a normalised volume (1,C,Z,Y,X) of `network`: (B,C,*window) -> (B,K).

    (K,) float64. A volume smaller than the window is padded with its darkest value.
    """
    padded, _ = pad_to(image, window)
    starts = [window_starts(n, w, overlap) for n, w in zip(padded.shape[2:], window)]
    found = []
    for corner in itertools.product(*starts):
        z, y, x = (slice(int(c), int(c) + w) for c, w in zip(corner, window))
        found.append(network(padded[:, :, z, y, x].to(device))[0].double().cpu())
    return torch.stack(found).mean(dim=0).numpy()


def check_classes(target: VolumeTarget, split: Split) -> list[str]:
    """Warnings of classes that no test patient has. Raises ValueError when no pool patient has one: it is not learnt.

    A pool patient has the class of his first volume, by which labelled subsets are drawn.
    """
    strata = target.strata()
    if strata is None:
        return []
    warnings = []
    for index, name in enumerate(target.classes):
        if not any(strata[patient] == index for patient in split.pool):
            raise ValueError(
                f"no patient of the split's pool has the class '{name}' of target '{target.name}': it could not be "
                "learnt; move one there"
            )
        if not any(target.truth(row) == index for patient in split.test for row in target.patients[patient]):
            warnings.append(
                f"No test patient has the class '{name}' of '{target.name}': AUROC, AP and F1 have no value."
            )
    return warnings
