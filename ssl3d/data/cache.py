"""Decoded voxels kept in memory: a chunk is decoded once, and a crop of what is there costs a copy.

Volumes come in as they are first read and stay. Regions are drawn from all volumes alike, so that no other choice of
the kept ones is hit more often, and one that gives volumes up for others would decode most of them again and again.
What is kept is filled chunk by chunk, by the crops that need them: no read waits for more than it asked for. Batches
are the same bits with and without a cache, and as long as nothing is to be read from it, a volume takes no memory.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any, Protocol

import numpy as np

from ssl3d.data.machine import available_memory
from ssl3d.data.rows import copy_rows

GB = 10**9


class ChunkedArray(Protocol):
    """What is cached: an array (C,Z,Y,X) of chunks (1,z,y,x), as `shard.ShardedArray`."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype

    def read_into(self, out: np.ndarray, low: tuple[int, ...], channels: range) -> None:
        """Fill `out` (len(channels),D,H,W) from the box that starts at `low` (z,y,x) and lies inside the array."""


class VoxelCache:
    """Decoded arrays of at most `capacity` bytes, shared by all threads of a process.

    An array is counted whole from its first read on, though memory is taken by the chunks that were read. Arrays that
    no longer fit are read past the cache. A copy that travels to another process is empty.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"a cache of {capacity} bytes: it must be 0 or more")
        self.capacity, self.used = capacity, 0
        self._kept: dict[Hashable, _Kept] = {}
        self._lock = threading.Lock()

    def read_into(
        self, key: Hashable, array: ChunkedArray, out: np.ndarray, low: tuple[int, ...], channels: range
    ) -> None:
        """`array.read_into`, out of memory where `key` is kept. Raises what the array raises, and for its reasons."""
        kept = self._admit(key, array)
        if kept is None:
            array.read_into(out, low, channels)
        else:
            kept.read_into(array, out, low, channels)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def share(self, parts: int) -> VoxelCache:
        """An empty cache of a `parts`-th of the capacity, for one of so many processes."""
        return VoxelCache(self.capacity // parts)

    def _admit(self, key: Hashable, array: ChunkedArray) -> _Kept | None:
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        nbytes = int(np.prod(array.shape)) * array.dtype.itemsize
        with self._lock:
            if key not in self._kept and self.used + nbytes <= self.capacity:
                self._kept[key] = _Kept(array)
                self.used += nbytes
            return self._kept.get(key)

    def __getstate__(self) -> int:
        return self.capacity

    def __setstate__(self, capacity: int) -> None:
        self.__init__(capacity)  # type: ignore[misc]


def cache_for(gigabytes: float, local_ranks: int) -> VoxelCache | None:
    """The cache of one of the `local_ranks` of a machine that has `gigabytes` for all of them; None for nothing.

    Raises ValueError naming data.cache_gb when it is negative, or more than the memory that is free.
    """
    if gigabytes < 0:
        raise ValueError(f"data.cache_gb is {gigabytes}: it must be 0 or more")
    free = available_memory()
    if gigabytes * GB > free:
        raise ValueError(
            f"data.cache_gb is {gigabytes}, but this machine has {free / GB:.1f} GB of free memory: take less, and "
            "leave room for the training"
        )
    return VoxelCache(int(gigabytes * GB / local_ranks)) if gigabytes else None


class _Kept:
    """The voxels of one array, and which of its chunks are there."""

    def __init__(self, array: ChunkedArray) -> None:
        self.voxels = np.empty(array.shape, array.dtype)  # pages that nothing was written to take no memory
        grid = [-(-n // c) for n, c in zip(array.shape, array.chunk)]
        self.there = np.zeros(grid, dtype=bool)

    def read_into(self, array: ChunkedArray, out: np.ndarray, low: tuple[int, ...], channels: range) -> None:
        """Decode what is missing, then copy. Threads may decode the same chunk: they write the same bytes."""
        high = tuple(lo + n for lo, n in zip(low, out.shape[1:]))
        edges = list(zip(low, high, array.chunk[1:]))
        window: Any = (slice(channels.start, channels.stop), *(slice(lo // c, -(-hi // c)) for lo, hi, c in edges))
        if not self.there[window].all():
            self._fill(array, window)
        copy_rows(self.voxels[(window[0], *map(slice, low, high))], out)

    def _fill(self, array: ChunkedArray, window: tuple[slice, ...]) -> None:
        """Decode the box of chunks, within `window`, that holds the missing ones."""
        missing = np.argwhere(~self.there[window]) + [s.start for s in window]
        first, end = missing.min(axis=0).tolist(), (missing.max(axis=0) + 1).tolist()
        low = [f * c for f, c in zip(first, array.chunk)]
        high = [min(e * c, n) for e, c, n in zip(end, array.chunk, array.shape)]
        box = self.voxels[tuple(map(slice, low, high))]
        array.read_into(box, tuple(low[1:]), range(low[0], high[0]))
        self.there[tuple(map(slice, first, end))] = True  # after its voxels: others read them from here on
