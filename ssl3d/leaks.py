"""Whether volumes are those of an evaluation: the same scan, the same patient, or a near duplicate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ssl3d.data.near import near_duplicates
from ssl3d.data.subjects import matching

SEEN_FILE = "seen.parquet"
SCAN, PATIENT, NEAR = "the very scan", "another scan of the patient", "a near duplicate"


def find_seen(source: Path) -> Path | None:
    """seen.parquet of a run directory, or of the run that a checkpoint file lies in; None when there is none."""
    folders = [source] if source.is_dir() else [source.parent, source.parent.parent]
    return next((folder / SEEN_FILE for folder in folders if (folder / SEEN_FILE).is_file()), None)


def seen_digest(seen: pd.DataFrame) -> str:
    """What checkpoints and exports carry of the list of volumes that they were trained on, in the order of its rows."""
    return hashlib.blake2b("\n".join(seen["fingerprint"]).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Shared:
    """Of the rows of a table: `reason` (n,), one of SCAN, PATIENT, NEAR or ''; `unsure` (n,): a near duplicate perhaps,
    its perceptual hash says so and the thumbnails that decide are not at hand."""

    reason: np.ndarray
    unsure: np.ndarray

    @property
    def any(self) -> np.ndarray:
        return self.reason != ""


def shared(mine: pd.DataFrame, theirs: pd.DataFrame) -> Shared:
    """Which rows of `mine` are also in `theirs`, tables with the columns of `ssl3d.data.near` (the last two may lack).

    By fingerprint, by subject (raw or hashed) and by looks: each alone misses what the others find, a copy under
    another name, another scan of the same patient, a copy that was resampled or rewritten.
    """
    reason = np.full(len(mine), "", dtype=object)
    near, unsure = near_duplicates(mine, theirs)
    reason[near] = NEAR
    patients = matching(set(mine["subject"]), _known(theirs["subject"]))
    reason[mine["subject"].isin(patients - {""}).to_numpy()] = PATIENT
    reason[mine["fingerprint"].isin(_known(theirs["fingerprint"])).to_numpy()] = SCAN
    return Shared(reason, unsure & (reason == ""))


def _known(values: pd.Series[str]) -> Sequence[str]:
    """Without empty entries: two volumes of unknown origin are not the same one."""
    return [v for v in values.unique() if isinstance(v, str) and v]
