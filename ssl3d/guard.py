"""The leak guard of a training: no test patient of the evaluations that the recipe names is trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ssl3d import config, leaks
from ssl3d.config import ConfigError, Recipe
from ssl3d.data.near import volume_table
from ssl3d.data.source import Source
from ssl3d.data.store import open_store
from ssl3d.data.subjects import matching
from ssl3d.recipe import GuardedSuite
from ssl3d.schema import MISSING

SUITES = config.RECIPES / "downstream"


@dataclass(frozen=True)
class Guarded:
    """What the guard found: `subjects` to leave out of training, and of the `probe`; `sentences` that say so."""

    subjects: frozenset[str] = frozenset()
    probe: frozenset[str] = frozenset()
    sentences: tuple[str, ...] = ()


def guard(recipe: Recipe, stores: Sequence[Source], inherited: pd.DataFrame | None = None) -> Guarded:
    """Compare all volumes that would be trained on with the test volumes of every suite in `guard.suites`.

    `inherited`: what the weights that `model.init` names were trained on. A subject with one volume that leaks is left
    out with all of its volumes. Raises ConfigError when guard.on_leak is stop and something leaks, when inherited
    weights have seen a test patient (that cannot be undone), when a suite says no store or split; FileNotFoundError.
    """
    suites = recipe.guard.suites
    if not suites:
        return Guarded()
    test, names = _test_volumes(suites), _names(suites)
    if inherited is not None:
        _refuse_inherited(recipe.model["init"], leaks.shared(inherited, test), names)
    mine = _kept(stores, recipe.data.include, recipe.data.exclude, "data")
    found = leaks.shared(mine, test)
    subjects = frozenset(mine.loc[found.any, "subject"])
    sentences = [_sentence(mine, found, subjects, names)]
    if found.unsure.any():
        sentences.append(
            f"guard.suites: {found.unsure.sum()} volumes may be near duplicates of test volumes of {names}, but their "
            "thumbnails could not be read: convert their store again"
        )
    if subjects and recipe.guard.on_leak == "stop":
        raise ConfigError([f"{sentences[0]}: set guard.on_leak=exclude, or name them in data.exclude"])
    if subjects:
        sentences[0] += "; they are left out"
    init = recipe.model["init"]
    if init is not None and inherited is None:
        sentences.append(
            f"guard.suites: whether the weights of model.init={init} have seen test patients of {names} cannot be "
            "checked: they come without a seen.parquet"
        )
    watched = _watched(recipe, test, names)
    if watched:
        sentences.append(
            f"guard.suites: {len(watched)} subjects of probe.store belong to test volumes of {names}; the probe leaves "
            "them out"
        )
    return Guarded(subjects, watched, tuple(sentences))


def _watched(recipe: Recipe, test: pd.DataFrame, names: str) -> frozenset[str]:
    """Subjects of the probe's store that are test patients: a run must not be stopped or chosen by them."""
    probe = recipe.probe
    if probe.store is None or not probe.every:
        return frozenset()
    mine = _kept([open_store(probe.store)], probe.include, probe.exclude, "probe")
    subjects = frozenset(mine.loc[leaks.shared(mine, test).any, "subject"])
    if subjects and recipe.guard.on_leak == "stop":
        raise ConfigError(
            [f"guard.suites: {len(subjects)} subjects of probe.store '{probe.store}' belong to test volumes of "
             f"{names}: set guard.on_leak=exclude, or name them in probe.exclude"]
        )  # fmt: skip
    return subjects


def _sentence(mine: pd.DataFrame, found: leaks.Shared, subjects: Collection[str], names: str) -> str:
    if not subjects:
        return (
            f"guard.suites: none of {len(mine)} volumes is a test volume of {names}, by fingerprint, subject or looks"
        )
    closed = mine["subject"].isin(subjects).sum()
    counts = {reason: int((found.reason == reason).sum()) for reason in (leaks.SCAN, leaks.PATIENT, leaks.NEAR)}
    counts["another scan of these subjects"] = int(closed - found.any.sum())
    why = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    whose = f"{len(subjects)} subject{'' if len(subjects) == 1 else 's'}"
    return f"guard.suites: {closed} of {len(mine)} volumes ({whose}) belong to test volumes of {names} ({why})"


def _refuse_inherited(init: str, found: leaks.Shared, names: str) -> None:
    if found.any.any():
        raise ConfigError(
            [f"model.init: the weights of '{init}' were trained on {found.any.sum()} volumes that belong to test "
             f"volumes of {names}: start from other weights, or take the suite out of guard.suites"]
        )  # fmt: skip


def _kept(
    stores: Sequence[Source], included: str | list[str] | None, excluded: str | list[str] | None, section: str
) -> pd.DataFrame:
    """The volumes that include and exclude of a section leave."""
    include = config.subjects(included, f"{section}.include")
    exclude = config.subjects(excluded, f"{section}.exclude") or set()
    table = pd.concat([volume_table(store, np.arange(len(store))) for store in stores], ignore_index=True)
    subjects = set(table["subject"])
    kept = subjects if include is None else matching(subjects, include)
    kept -= matching(subjects, exclude)
    return table[table["subject"].isin(kept)].reset_index(drop=True)


def _test_volumes(suites: Sequence[GuardedSuite]) -> pd.DataFrame:
    """The volumes of all test patients of the suites."""
    tables = []
    for number, suite in enumerate(suites):
        key = f"guard.suites.{number}"
        store, split = _places(suite, key)
        opened = open_store(store)
        table = volume_table(opened, np.arange(len(opened)))
        test = table["subject"].isin(matching(set(table["subject"]), _test_patients(split, key)))
        if not test.any():
            raise ConfigError([f"{key}: the store {store} holds no test patient of {split}"])
        tables.append(table[test])
    return pd.concat(tables, ignore_index=True)


def _places(suite: GuardedSuite, key: str) -> tuple[str, str]:
    """Store and split of a suite: as given, else as its file says."""
    values = {} if suite.suite is None else config.read(suite.suite, SUITES, kind="suite")
    found = []
    for name, given in (("store", suite.store), ("split", suite.split)):
        value = given or values.get(name)
        if isinstance(value, Mapping):
            value = _stated(value, suite.suite or "", key)
        if not isinstance(value, str) or value == MISSING:
            where = f"the suite '{suite.suite}' leaves it open" if suite.suite else "no suite is named"
            raise ConfigError([f"{key}.{name} is not set, and {where}: give {key}.{name}=PATH"])
        found.append(value)
    return found[0], found[1]


def _stated(split: Mapping[str, Any], suite: str, key: str) -> str:
    """The file of a suite's split: as stated, or the one that a finished evaluation left beside its suite.yaml.

    Raises ConfigError where the suite draws it from the labelled store and nothing was evaluated yet.
    """
    if split.get("rule") == "file":
        return str(split["file"])
    drawn = Path(suite).with_name("split.json")
    if Path(suite).name != "suite.yaml" or not drawn.is_file():
        raise ConfigError(
            [f"{key}.split is not set, and the suite draws its split from the labelled store: write it by "
             f"ssl3d evaluate --suite {suite} --out OUT --plan-only, and name both: guard.suites="
             f"'[{{suite: {suite}, split: OUT/split.json}}]'"]
        )  # fmt: skip
    return str(drawn)


def _test_patients(split: str, key: str) -> list[str]:
    content = config.read_json(str(config.find_split(split)), f"{key}.split")
    patients = config.patients_of(content.get("test")) if isinstance(content, dict) else None
    if not patients:
        raise ConfigError([f"{key}.split: '{split}' names no test patients"])
    return patients


def _names(suites: Sequence[GuardedSuite]) -> str:
    names = [Path(s.suite).stem if s.suite else Path(s.store or "").stem for s in suites]
    return ", ".join(dict.fromkeys(f"'{name}'" for name in names))
