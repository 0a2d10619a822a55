"""Scans that a store holds twice: equal ones are kept once, nearly equal ones are pointed out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from ssl3d.data.thumbnail_file import ThumbnailFile

NEAR = 0.99  # correlation of 32^3 thumbnails; a hash alone would merge most of a registered archive
_QUARTERS = range(0, 16, 4)  # hash digits; equal in one of four, so that up to 3 flipped bits are always seen
_FRAME = re.compile(r"_t\d{4}$")
_LARGEST_GROUP = 200  # volumes that share a quarter of their hash; larger groups tell nothing apart


def exact_duplicates(index: pd.DataFrame, order: Mapping[str, int]) -> dict[str, str]:
    """{volume id: id of the equal volume that is kept}: the first in `order` is (volumes of earlier runs come first).

    Frames of one series are never duplicates of each other.
    """
    groups: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for volume_id, fingerprint in zip(index["id"], index["fingerprint"]):
        groups[fingerprint].append((order.get(volume_id, -1), volume_id))
    found: dict[str, str] = {}
    for members in groups.values():
        members.sort()
        kept: list[tuple[str, str]] = []
        for _, volume_id in members:
            other = next((name for name, series in kept if series != _series(volume_id)), None)
            if other is None:
                kept.append((volume_id, _series(volume_id)))
            else:
                found[volume_id] = other
    return found


def _series(volume_id: str) -> str:
    """The id without the number of a time frame."""
    return _FRAME.sub("", volume_id)


def near_duplicates(root: str | Path, index: pd.DataFrame) -> list[tuple[str, str, float]]:
    """(id, id, correlation) of volumes of different series whose thumbnails correlate above 0.99, sorted."""
    if len(index) < 2:
        return []
    buckets: dict[tuple[int, str], list[int]] = defaultdict(list)
    for row, value in enumerate(index["perceptual_hash"]):
        for start in _QUARTERS:
            buckets[start, value[start : start + 4]].append(row)
    pairs = {pair for rows in buckets.values() if len(rows) <= _LARGEST_GROUP for pair in combinations(rows, 2)}
    thumbnails = ThumbnailFile(root)
    ids = index["id"].tolist()
    found = []
    for a, b in sorted(pairs):
        if _series(ids[a]) != _series(ids[b]):
            x, y = (thumbnails[row].astype(np.float32).ravel() for row in (a, b))
            scale = float(np.linalg.norm(x) * np.linalg.norm(y))
            correlation = float(x @ y) / scale if scale > 0 else 0.0
            if correlation > NEAR:
                found.append((ids[a], ids[b], correlation))
    return found
