"""Scans that a store holds twice: equal ones are kept once, nearly equal ones are pointed out."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ssl3d.data import format as fmt
from ssl3d.data.looks import MAX_FLIPS, NEAR, Looks
from ssl3d.data.objects import Objects, open_objects
from ssl3d.data.thumbnail_file import ThumbnailFile

MAX_PARTNERS = 16  # pairs reported of one series
_BLOCK = 1 << 22  # pairs of hashes compared at once
_FRAME = re.compile(r"_t\d{4,}$")
_DICOM = re.compile(r"dicom-[0-9a-f]+")
_COLUMNS = ("volume", "other", "correlation", "same_subject")


@dataclass(frozen=True)
class Near:
    """Two volumes that look alike."""

    volume: str
    other: str
    correlation: float
    same_subject: bool

    def __str__(self) -> str:
        return f"{self.volume} and {self.other} look alike (correlation {self.correlation:.3f})"


def series_of(index: pd.DataFrame) -> list[str]:
    """For each volume, what it is a time frame, an echo or the whole of: one file or one DICOM series."""
    found = []
    for volume_id, source in zip(index["id"], index["source"]):
        dicom = _DICOM.match(source)
        found.append(dicom.group() if dicom else f"{_FRAME.sub('', volume_id)}/{source}")
    return found


def exact_duplicates(index: pd.DataFrame, order: Mapping[str, int]) -> dict[str, str]:
    """{volume id: id of the equal volume that is kept}: of earlier runs, else with labels, else the first in `order`.

    Labels count before order, since a data set may hold a labelled frame and the series that it was taken from (ACDC).
    Frames of one series are never duplicates of each other.
    """
    groups: dict[str, list[tuple[tuple[bool, bool, int], str, str]]] = defaultdict(list)
    labelled = index["has_label"] if "has_label" in index else [False] * len(index)
    for volume_id, fingerprint, has_label, series in zip(index["id"], index["fingerprint"], labelled, series_of(index)):
        rank = volume_id in order, not has_label, order.get(volume_id, -1)
        groups[fingerprint].append((rank, volume_id, series))
    found: dict[str, str] = {}
    for members in groups.values():
        members.sort()
        kept: list[tuple[str, str]] = []
        for _, volume_id, series in members:
            other = next((name for name, its_series in kept if its_series != series), None)
            if other is None:
                kept.append((volume_id, series))
            else:
                found[volume_id] = other
    return found


def near_duplicates(root: str | Path, index: pd.DataFrame) -> list[Near]:
    """Pairs of volumes of different series whose thumbnails correlate above 0.99, sorted by id.

    Hashes propose pairs, coarse thumbnails (8^3) rule out what cannot reach 0.99, thumbnails decide. Of the time frames
    of two series one pair is returned; a series is in 16 pairs at most.
    """
    rows = np.flatnonzero(index["perceptual_hash"].to_numpy() != "")
    if len(rows) < 2:
        return []
    hashes = np.array([int(value, 16) for value in index["perceptual_hash"].iloc[rows]], dtype=np.uint64)
    series = pd.factorize(np.array(series_of(index), dtype=object)[rows])[0]
    looks = Looks(ThumbnailFile(root), index.iloc[rows], rows)
    ids, subjects = index["id"].iloc[rows].tolist(), index["subject"].iloc[rows].tolist()
    found: dict[tuple[int, int], Near] = {}  # by the two series
    partners: Counter[int] = Counter()
    for first, second in _candidates(hashes, series, looks):
        for a, b in zip(first.tolist(), second.tolist()):
            key = (min(series[a], series[b]), max(series[a], series[b]))
            if key in found or max(partners[key[0]], partners[key[1]]) >= MAX_PARTNERS:
                continue
            correlation = looks.correlation(a, b)
            if correlation > NEAR:
                volume, other = sorted((ids[a], ids[b]))
                found[key] = Near(volume, other, correlation, subjects[a] == subjects[b])
                partners.update(key)
    return sorted(found.values(), key=lambda near: (near.volume, near.other))


def _candidates(hashes: np.ndarray, series: np.ndarray, looks: Looks) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows, each pair once, of different series, similar hashes and similar coarse looks.

    Hashes that share one of their 8 bytes meet in a bucket, so a pair that differs in 7 bits or fewer always meets.
    Buckets are compared block by block, however large they are: the work is bounded by all pairs of volumes, the memory
    by a block.
    """
    for number in range(8):
        byte = (hashes >> np.uint64(8 * number)) & np.uint64(255)
        order = np.argsort(byte, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(byte[order])) + 1):
            step = max(1, _BLOCK // len(bucket))
            for start in range(0, len(bucket) - 1, step):
                rows, columns = bucket[start : start + step], bucket[start:]
                i, j = _similar(hashes[rows], hashes[columns], number)
                later = (j > i) & (series[rows[i]] != series[columns[j]])
                first, second = looks.close(rows, columns, i[later], j[later])
                if len(first):
                    yield first, second


def _similar(left: np.ndarray, right: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (i, j) of hashes that differ in at most MAX_FLIPS bits and share no byte below `number`."""
    different = left[:, None] ^ right[None]
    i, j = np.nonzero(np.bitwise_count(different) <= MAX_FLIPS)
    bits = different[i, j]
    fresh = np.ones(len(bits), bool)
    for lower in range(number):
        fresh &= (bits >> np.uint64(8 * lower)) & np.uint64(255) != 0
    return i[fresh], j[fresh]


def write_duplicates(objects: Objects, found: Sequence[Near]) -> None:
    """Write duplicates.csv into the store: ids only, which are pseudonyms."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for near in found:
        same = "yes" if near.same_subject else "no"
        writer.writerow((near.volume, near.other, f"{near.correlation:.4f}", same))
    objects.put(fmt.DUPLICATES_FILE, text.getvalue().encode())


def read_duplicates(root: str | Path) -> list[Near]:
    """The pairs that the last conversion found; [] where no list was written."""
    objects = open_objects(root)
    if not objects.exists(fmt.DUPLICATES_FILE):
        return []
    rows = csv.DictReader(io.StringIO(objects.get(fmt.DUPLICATES_FILE).decode(), newline=""))
    return [Near(row["volume"], row["other"], float(row["correlation"]), row["same_subject"] == "yes") for row in rows]
