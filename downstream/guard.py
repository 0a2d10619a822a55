"""The leak guard: no test patient may have been seen in pre-training, or be labelled in the pool under another name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ssl3d import initial, leaks
from ssl3d.leaks import SEEN_FILE, find_seen

_HOW = {leaks.SCAN: "this very scan", leaks.PATIENT: "a scan of this patient", leaks.NEAR: "a near duplicate of it"}
_SAME = {leaks.SCAN: "the very scan", leaks.PATIENT: "the same subject", leaks.NEAR: "a near duplicate"}


class LeakError(ValueError):
    """A test patient of the evaluation was seen in a run's pre-training."""


def check_leak(source: Path, test: pd.DataFrame, allow_leak: bool, card: str | None = None) -> list[str]:
    """Compare the test volumes (`ssl3d.data.near.volume_table`) with what the run saw: -> warnings for the report.

    Volumes are compared by fingerprint, by subject (raw or hashed) and by looks (ssl3d.leaks). A bare file without
    seen.parquet cannot be checked and says so. `card`: the digest of that list which the weights carry, if they do; a
    list that is another's is read, and not believed.
    Raises LeakError with the number and the first of the leaked patients, unless `allow_leak`.
    """
    path = find_seen(source)
    if path is None:
        unknown = f"{source} comes without {SEEN_FILE}: whether its pre-training saw test patients could not be checked"
        more = "" if card is None else f"; it names the list {card}: lay that {SEEN_FILE} beside it"
        return [f"{unknown}{more}."]
    seen = pd.read_parquet(path)
    started = initial.load(path.parent)
    warnings = []
    if card not in (None, leaks.seen_digest(seen)):
        warnings.append(
            f"{path} is not the list that the weights of {source} name ({card}): whether their pre-training saw test "
            "patients could not be checked."
        )
    if started is not None:
        warnings += [
            f"{source} began or learnt from {weights}, whose training data are unknown: whether those weights saw test "
            "patients could not be checked."
            for weights in started.unknown()
        ]
    test = test.reset_index(drop=True)
    found = leaks.shared(test, seen)
    if found.unsure.any():
        warnings.append(
            f"{found.unsure.sum()} of {len(test)} test volumes may be near duplicates of volumes that {source} was "
            "trained on, by their perceptual hashes; the store with the thumbnails that decide is not where it was."
        )
    leaked = test[found.any]
    if leaked.empty:
        return warnings
    patients = sorted(leaked["subject"].unique())
    first = leaked[leaked["subject"] == patients[0]].iloc[0]
    sentence = (
        f"{len(patients)} of {test['subject'].nunique()} test patients were seen in the pre-training of {source}, "
        f"first '{patients[0]}' (volume {first['volume']}: {_HOW[found.reason[first.name]]})"
    )
    if not allow_leak:
        raise LeakError(
            f"{sentence}: pre-train without them (guard.suites finds them under any name, data.exclude=SPLIT by "
            "theirs), or say allow_leak=true"
        )
    return [*warnings, f"Leak allowed: {sentence}; its test scores are not those of unseen patients."]


def check_sets(tables: Mapping[str, pd.DataFrame], allow_leak: bool) -> list[str]:
    """Compare the patients of an evaluation with each other: -> warnings for the report.

    `tables`: {pool, validation, test: volumes (`ssl3d.data.near.volume_table`)}. The split says that nobody is in two
    of them; here the scans say it, by fingerprint, by subject (raw or hashed) and by looks.
    Raises LeakError with the number and the first of the patients that two sets share, unless `allow_leak`.
    """
    warnings = []
    for one, other in (("pool", "test"), ("validation", "test"), ("pool", "validation")):
        mine, theirs = tables[one].reset_index(drop=True), tables[other]
        found = leaks.shared(mine, theirs)
        if found.unsure.any():
            warnings.append(
                f"{found.unsure.sum()} of {len(mine)} {one} volumes may be near duplicates of {other} volumes, by "
                "their perceptual hashes; the thumbnails that decide are not in the store."
            )
        if not found.any.any():
            continue
        patients = sorted(mine.loc[found.any, "subject"].unique())
        first = mine[found.any & (mine["subject"] == patients[0]).to_numpy()].iloc[0]
        sentence = (
            f"{len(patients)} {one} patients of the split are {other} patients too, first '{patients[0]}' (volume "
            f"{first['volume']}: {_SAME[found.reason[first.name]]})"
        )
        if not allow_leak:
            raise LeakError(f"{sentence}: give each patient one purpose in the split, or say allow_leak=true")
        warnings.append(f"Leak allowed: {sentence}; its scores are not those of unseen patients.")
    return warnings
