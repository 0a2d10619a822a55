"""The leak guard: no test patient may have been seen in pre-training."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ssl3d import initial, leaks
from ssl3d.leaks import SEEN_FILE, find_seen

_HOW = {leaks.SCAN: "this very scan", leaks.PATIENT: "a scan of this patient", leaks.NEAR: "a near duplicate of it"}


class LeakError(ValueError):
    """A test patient of the evaluation was seen in a run's pre-training."""


def check_leak(source: Path, test: pd.DataFrame, allow_leak: bool) -> list[str]:
    """Compare the test volumes (`ssl3d.data.near.volume_table`) with what the run saw: -> warnings for the report.

    Volumes are compared by fingerprint, by subject (raw or hashed) and by looks (ssl3d.leaks). A bare file without
    seen.parquet cannot be checked and says so.
    Raises LeakError with the number and the first of the leaked patients, unless `allow_leak`.
    """
    path = find_seen(source)
    if path is None:
        return [f"{source} comes without {SEEN_FILE}: whether its pre-training saw test patients could not be checked."]
    started = initial.load(path.parent)
    warnings = []
    if started is not None and started.record["data"] == initial.UNKNOWN:
        warnings.append(
            f"{source} began from {started.record['init']} ({started.record['format']}), whose training data are "
            "unknown: whether those weights saw test patients could not be checked."
        )
    test = test.reset_index(drop=True)
    found = leaks.shared(test, pd.read_parquet(path))
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
        raise LeakError(f"{sentence}: pre-train without them (data.exclude=SPLIT), or say allow_leak=true")
    return [*warnings, f"Leak allowed: {sentence}; its test scores are not those of unseen patients."]
