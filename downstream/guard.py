"""The leak guard: no test patient may have been seen in pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ssl3d.data.subjects import matching

SEEN_FILE = "seen.parquet"


class LeakError(ValueError):
    """A test patient of the evaluation was seen in a run's pre-training."""


def find_seen(source: Path) -> Path | None:
    """seen.parquet of a run directory, or of the run that a checkpoint file lies in; None when there is none."""
    folders = [source] if source.is_dir() else [source.parent, source.parent.parent]
    return next((folder / SEEN_FILE for folder in folders if (folder / SEEN_FILE).is_file()), None)


def check_leak(source: Path, test: pd.DataFrame, allow_leak: bool) -> list[str]:
    """Compare the test volumes (index rows) with what the run was trained on: -> warnings for the report.

    Volumes are compared by fingerprint and by subject (raw or hashed): either alone misses a copy under another name,
    or another scan of the same patient. A bare file without seen.parquet cannot be checked and says so.
    Raises LeakError with the number and the first of the leaked patients, unless `allow_leak`.
    """
    path = find_seen(source)
    if path is None:
        return [f"{source} comes without {SEEN_FILE}: whether its pre-training saw test patients could not be checked."]
    seen = pd.read_parquet(path, columns=["fingerprint", "subject"])
    same_scan = test["fingerprint"].isin(_known(seen["fingerprint"]))
    same_subject = test["subject"].isin(matching(set(test["subject"]), _known(seen["subject"])))
    leaked = test[same_scan | same_subject]
    if leaked.empty:
        return []
    patients = sorted(leaked["subject"].unique())
    first = leaked[leaked["subject"] == patients[0]].iloc[0]
    how = "this very scan" if same_scan[first.name] else "a scan of this patient"
    sentence = (
        f"{len(patients)} of {test['subject'].nunique()} test patients were seen in the pre-training of {source}, "
        f"first '{patients[0]}' (volume {first['id']}: {how})"
    )
    if not allow_leak:
        raise LeakError(f"{sentence}: pre-train without them (data.exclude=SPLIT), or say allow_leak=true")
    return [f"Leak allowed: {sentence}; its test scores are not those of unseen patients."]


def _known(values: pd.Series[str]) -> Sequence[str]:
    """Without empty entries: two volumes of unknown origin are not the same one."""
    return [v for v in values.unique() if isinstance(v, str) and v]
