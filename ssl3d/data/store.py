"""Open a store and read boxes of its volumes, by the direct shard reader or through zarr-python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ssl3d.data import format as fmt
from ssl3d.data.cache import VoxelCache
from ssl3d.data.format import LabelInfo, VolumeAttributes
from ssl3d.data.index import METADATA, read_index
from ssl3d.data.lru import LRU
from ssl3d.data.objects import no_store, open_objects
from ssl3d.data.shard import ShardedArray
from ssl3d.data.source import Source
from ssl3d.regions import Size3

MAX_OPEN_VOLUMES = 512


class Store(Source):
    """A read-only store: what the index says, and boxes of voxels.

    `path`: directory or fsspec URL. `direct`: decode shards ourselves; False reads through zarr-python. Rows
    are positions in the index. Cheap to pickle; nothing is opened before the first read, so that a process may be
    forked or spawned after opening a store.
    Raises FileNotFoundError naming the path when there is no store, or no index yet.
    """

    def __init__(self, path: str | Path, direct: bool = True) -> None:
        self._objects = open_objects(path)
        if not self._objects.exists(METADATA):
            raise no_store(path)
        if not self._objects.exists(fmt.INDEX_FILE):
            raise FileNotFoundError(f"store {path} has no {fmt.INDEX_FILE}: finish it by running ssl3d convert again")
        root = json.loads(self._objects.get(METADATA)).get("attributes", {})
        if root.get(fmt.FORMAT_KEY) != fmt.FORMAT_VERSION:
            raise ValueError(f"{path} is not an ssl3d store of version {fmt.FORMAT_VERSION}: convert its sources again")
        super().__init__(str(path), read_index(self._objects).combine_chunks(), root.get("statistics", {}))
        self.direct = direct
        self._arrays: LRU[tuple[int, str], Any] = LRU(MAX_OPEN_VOLUMES)
        self._air: dict[int, np.ndarray] = {}

    def attributes(self, row: int) -> VolumeAttributes:
        """All attributes of a volume, from its array (the truth). Raises ValueError naming the volume."""
        try:
            return VolumeAttributes.from_json(self._array_attributes(row, fmt.VOLUMES))
        except ValueError as error:
            raise ValueError(f"volume {self.volume_id(row)} of {self.path}: {error}") from error

    def label_info(self, row: int) -> LabelInfo:
        """Classes, ignore value and sampled coordinates of a labelled volume. Raises FileNotFoundError."""
        return LabelInfo.from_json(self._array_attributes(row, fmt.LABELS))

    def digest(self, row: int, kind: str = fmt.VOLUMES) -> dict[str, str]:
        """{shard object: blake2b} of an array, as it was written."""
        return dict(self._array_attributes(row, kind).get("digest") or {})

    def shape(self, row: int, kind: str = fmt.VOLUMES) -> tuple[int, ...]:
        """(C,Z,Y,X) of an array."""
        return tuple(self._array(row, kind).shape)

    def air(self, row: int) -> np.ndarray:
        """(C,) int16: the stored value of each channel's `low`, what voxels outside the volume are set to."""
        air = self._air.get(row)
        if air is None:
            low = np.array([s["low"] for s in self.cell("valid_stats", row)])
            stored = (low - np.array(self.cell("offset", row))) / np.array(self.cell("scale", row))
            air = np.clip(np.rint(stored), -32768, 32767).astype(np.int16)
            self._air[row] = air
        return air

    def read(
        self,
        row: int,
        start: tuple[int, int, int],
        size: Size3,
        kind: str = fmt.VOLUMES,
        out: np.ndarray | None = None,
        channel: int | None = None,
        cache: VoxelCache | None = None,
    ) -> np.ndarray:
        """The box of `size` (D,H,W) voxels that begins at `start` (z,y,x), which may lie outside the volume.

        Returns (C,D,H,W), or (1,D,H,W) of one `channel`; written into `out` when given (same shape and dtype, rows
        along W contiguous). Outside the volume: the air value for volumes, 0 otherwise. What is decoded goes through
        `cache` when one is given.
        Raises ValueError naming the volume and the file when a chunk is damaged.
        """
        array = self._array(row, kind)
        channels = range(array.shape[0]) if channel is None else range(channel, channel + 1)
        if channels.stop > array.shape[0]:
            raise ValueError(f"volume {self.volume_id(row)} of {self.path} has no channel {channel}")
        shape = (len(channels), *size)
        if out is None:
            out = np.empty(shape, dtype=array.dtype)
        elif out.shape != shape or out.dtype != array.dtype or out.strides[-1] != out.itemsize:
            raise ValueError(f"out must be {shape} {array.dtype} with contiguous rows, got {out.shape} {out.dtype}")
        low = tuple(max(0, s) for s in start)
        high = tuple(min(n, s + d) for n, s, d in zip(array.shape[1:], start, size))
        if any(h - lo < d for lo, h, d in zip(low, high, size)):
            out[...] = self.air(row)[list(channels), None, None, None] if kind == fmt.VOLUMES else 0
        if all(h > lo for lo, h in zip(low, high)):
            inside = tuple(slice(lo - s, h - s) for lo, h, s in zip(low, high, start))
            box = out[(slice(None), *inside)]
            if isinstance(array, ShardedArray) and cache is not None:
                cache.read_into((self.path, row, kind), array, box, low, channels)
            elif isinstance(array, ShardedArray):
                array.read_into(box, low, channels)
            else:
                box[...] = self._read_zarr(
                    array, row, kind, (slice(channels.start, channels.stop), *map(slice, low, high))
                )
        return out

    def _array(self, row: int, kind: str) -> Any:
        """The open array, a ShardedArray or a zarr.Array."""
        return self._arrays.get((row, kind), lambda: self._open(row, kind))

    def _open(self, row: int, kind: str) -> Any:
        volume_id = self.volume_id(row)
        if self.direct:
            return ShardedArray(self._objects, f"{kind}/{volume_id}", f"volume {volume_id}")
        import zarr  # not before the first read: zarr's event loop must not be alive when a process forks

        try:
            return zarr.open_array(f"{self._objects.root}/{kind}/{volume_id}", mode="r")
        except (FileNotFoundError, KeyError) as error:
            raise FileNotFoundError(
                f"volume {volume_id}: {self.path}/{kind}/{volume_id} is not in the store, or not completely written"
            ) from error

    def _read_zarr(self, array: Any, row: int, kind: str, box: tuple[slice, ...]) -> np.ndarray:
        try:
            return array[box]
        except Exception as error:
            raise ValueError(
                f"volume {self.volume_id(row)}: {self.path}/{kind}/{self.volume_id(row)} cannot be read ({error}): "
                "convert the volume again"
            ) from error

    def _array_attributes(self, row: int, kind: str) -> dict[str, Any]:
        array = self._array(row, kind)
        return array.attributes if isinstance(array, ShardedArray) else dict(array.attrs)


def open_store(path: str | Path, direct: bool = True) -> Store:
    """Open a store for reading. Raises FileNotFoundError naming the path."""
    return Store(path, direct)
