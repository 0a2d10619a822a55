"""Volumes of one table that look like volumes of another: near duplicates across stores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ssl3d.data.looks import MAX_FLIPS, NEAR, Looks
from ssl3d.data.source import Source
from ssl3d.data.store import open_store
from ssl3d.data.thumbnail_file import ThumbnailFile

# What names a volume wherever it lies: enough to compare it, and to find its thumbnail while its store is where it was.
COLUMNS = ("fingerprint", "perceptual_hash", "subject", "volume", "store")
_BLOCK = 1 << 22  # pairs of hashes compared at once


def volume_table(store: Source, rows: np.ndarray | list[int]) -> pd.DataFrame:
    """COLUMNS of chosen rows of a store; `store` is its path as it was opened."""
    names = {"fingerprint": "fingerprint", "perceptual_hash": "perceptual_hash", "subject": "subject", "volume": "id"}
    return pd.DataFrame({name: store.column(column)[rows] for name, column in names.items()} | {"store": store.path})


def near_duplicates(mine: pd.DataFrame, theirs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(which of `mine` look like one of `theirs`, which may but cannot be compared), bool arrays (len(mine),).

    Tables of COLUMNS. Hashes that differ in at most 12 of 64 bits propose a pair, the thumbnails decide: they correlate
    above 0.99 (ssl3d.data.looks). Where a thumbnail is not at hand, because its store has moved or the table does not
    say where it lies, a proposed pair stays undecided.
    """
    found, unsure = np.zeros(len(mine), bool), np.zeros(len(mine), bool)
    if not len(mine) or not len(theirs) or "perceptual_hash" not in theirs:
        return found, unsure
    both = pd.concat([mine.reindex(columns=list(COLUMNS)), theirs.reindex(columns=list(COLUMNS))], ignore_index=True)
    hashed = np.flatnonzero(both["perceptual_hash"].fillna("").to_numpy() != "")
    first, second = hashed[hashed < len(mine)], hashed[hashed >= len(mine)]
    hashes = np.zeros(len(both), np.uint64)
    hashes[hashed] = [int(value, 16) for value in both["perceptual_hash"].iloc[hashed]]
    pairs = np.concatenate([np.empty((0, 2), int), *_alike(hashes, first, second)])
    if not len(pairs):
        return found, unsure
    asked = np.unique(pairs)
    gallery = _Gallery(both.iloc[asked])
    looks = Looks(gallery, gallery.geometry, np.arange(len(asked)))
    a, b = np.searchsorted(asked, pairs.T)
    known = gallery.known[a] & gallery.known[b]
    unsure[asked[a[~known]]] = True
    a, b = a[known], b[known]
    for i, j in zip(*looks.close(a, b, np.arange(len(a)), np.arange(len(a)))):
        found[asked[i]] |= looks.correlation(int(i), int(j)) > NEAR
    return found, unsure & ~found


def _alike(hashes: np.ndarray, first: np.ndarray, second: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks (n, 2) of pairs of rows, one of `first` and one of `second`, whose hashes differ in few bits."""
    step = max(1, _BLOCK // max(1, len(second)))
    for start in range(0, len(first), step):
        rows = first[start : start + step]
        i, j = np.nonzero(np.bitwise_count(hashes[rows][:, None] ^ hashes[second][None]) <= MAX_FLIPS)
        yield np.stack([rows[i], second[j]], axis=1)


class _Gallery:
    """Thumbnails of the rows of a table, from the stores it names.

    `known` (n,): whose thumbnail was found: the store is there, and holds a volume of this id and fingerprint.
    `geometry`: their columns `affine` and `shape`.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        n = len(table)
        self.known = np.zeros(n, bool)
        self._files: list[ThumbnailFile] = []
        self._file, self._row = np.zeros(n, int), np.zeros(n, int)
        affines, shapes = np.tile(np.eye(4).ravel(), (n, 1)), np.ones((n, 3), int)
        table = table.reset_index(drop=True)
        for path, own in table.groupby("store"):
            try:
                store, file = open_store(str(path)), ThumbnailFile(str(path))
            except (OSError, ValueError):  # has moved, or is another one by now: these stay unknown
                continue
            place = {key: row for row, key in enumerate(zip(store.column("id"), store.column("fingerprint")))}
            rows = np.array([place.get(key, -1) for key in zip(own["volume"], own["fingerprint"])])
            at, rows = own.index.to_numpy()[rows >= 0], rows[rows >= 0]
            self.known[at], self._row[at], self._file[at] = True, rows, len(self._files)
            affines[at], shapes[at] = store.column("affine").reshape(-1, 16)[rows], store.column("shape")[rows]
            self._files.append(file)
        self.geometry = pd.DataFrame({"affine": affines.tolist(), "shape": shapes.tolist()})

    def __getitem__(self, row: int) -> np.ndarray:
        return self._files[self._file[row]][int(self._row[row])]
