"""Direct reader of a sharded zarr array: decodes only the chunks that a box touches.

It reads the bytes that any zarr v3 reader reads: a shard is a file of blosc-compressed chunks followed by an index of
(offset, nbytes) per chunk and the index's crc32c. The index is read once per open shard, and every touched chunk is
decoded into a scratch chunk that stays in the CPU's cache and is copied from there. A file on a disk is mapped into
memory; behind a URL, the touched chunks are fetched, all at once, to their places in an otherwise empty mapping.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from ssl3d.data.blosc import Destination, decode
from ssl3d.data.lru import LRU
from ssl3d.data.objects import LocalObjects, Objects
from ssl3d.data.rows import rows

MISSING = 2**64 - 1  # offset and nbytes of a chunk that holds only the fill value
WORTH_A_REQUEST = 1 << 18  # bytes; fetching so many in vain costs less than asking once more
MAX_OPEN_SHARDS = 512  # mapped files per process; a mapping holds a file descriptor, of which 1,024 are common


class Shard:
    """One shard. `index` (chunks of the shard..., 2) uint64: offset and nbytes of every chunk.

    `tail`: the last bytes of the object, at least the index and its checksum; `size` of the whole object.
    """

    def __init__(self, place: str, size: int, tail: memoryview, chunks: tuple[int, ...]) -> None:
        self.place = place
        length = 16 * int(np.prod(chunks))
        raw = bytes(tail[len(tail) - length - 4 : len(tail) - 4])
        if google_crc32c.value(raw) != int.from_bytes(tail[len(tail) - 4 :], "little"):
            raise ValueError(f"shard {place} has a damaged chunk index: convert its volume again")
        self.index = np.frombuffer(raw, dtype="<u8").reshape(*chunks, 2)
        self.limit = size - length - 4

    def window(self, touched: np.ndarray) -> tuple[int, memoryview]:
        """(address, view) of the object's bytes; those of the `touched` chunks, (..., 2) of the index, are there."""
        raise NotImplementedError


class MappedShard(Shard):
    """A file on a disk, mapped into memory."""

    def __init__(self, path: Path, chunks: tuple[int, ...]) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_size(str(path), size, chunks)
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.view = memoryview(self.bytes)
        super().__init__(str(path), size, self.view, chunks)
        self.address = np.frombuffer(self.bytes, dtype=np.uint8).ctypes.data

    def window(self, touched: np.ndarray) -> tuple[int, memoryview]:
        return self.address, self.view


class RemoteShard(Shard):
    """An object behind a URL. Every window is fetched anew: what is read is a random crop, seldom the same twice."""

    def __init__(self, objects: Objects, key: str, chunks: tuple[int, ...]) -> None:
        self.objects, self.key = objects, key
        place = f"{objects.root}/{key}"
        size = objects.size(key)
        _check_size(place, size, chunks)
        (tail,) = objects.get_ranges(key, [(size - 16 * int(np.prod(chunks)) - 4, size)])
        super().__init__(place, size, memoryview(tail), chunks)

    def window(self, touched: np.ndarray) -> tuple[int, memoryview]:
        entries = touched.reshape(-1, 2)
        entries = entries[entries[:, 0] != MISSING].astype(np.int64)
        empty = mmap.mmap(-1, max(self.limit, 1))  # pages that nothing is written to take no memory
        spans = _merged([(o, o + n) for o, n in entries.tolist() if 0 <= o <= o + n <= self.limit])
        for (first, _), data in zip(spans, self.objects.get_ranges(self.key, spans) if spans else []):
            empty[first : first + len(data)] = data
        return np.frombuffer(empty, dtype=np.uint8).ctypes.data, memoryview(empty)


def _check_size(place: str, size: int, chunks: tuple[int, ...]) -> None:
    if size < 16 * int(np.prod(chunks)) + 4:
        raise ValueError(f"shard {place} is truncated ({size} bytes): convert its volume again")


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans sorted, those with less than a request's worth of bytes between them made one."""
    merged: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if merged and first - merged[-1][1] < WORTH_A_REQUEST:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


_open_shards: LRU[tuple[str, str], Shard] = LRU(MAX_OPEN_SHARDS)


class Scratch(threading.local):
    """Each thread's own chunk to decode into."""

    def __init__(self) -> None:
        self._chunks: dict[tuple[tuple[int, ...], np.dtype], Destination] = {}

    def chunk(self, shape: tuple[int, ...], dtype: np.dtype) -> Destination:
        chunk = self._chunks.get((shape, dtype))
        if chunk is None:
            chunk = self._chunks[(shape, dtype)] = Destination(np.empty(shape, dtype))
        return chunk


_scratch = Scratch()


class ShardedArray:
    """A zarr v3 array (C,Z,Y,X) written by `write_volume`, in `folder` of a store's objects, read without zarr.

    Raises FileNotFoundError when the array is not there (or not committed) and ValueError when its codecs are not the
    store's; `name` says in messages which volume it belongs to.
    """

    def __init__(self, objects: Objects, folder: str, name: str) -> None:
        self.objects, self.folder, self.name = objects, folder, name
        place = f"{objects.root}/{folder}"
        try:
            metadata = json.loads(objects.get(f"{folder}/zarr.json"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{name}: {place} is not in the store, or not completely written") from error
        self.attributes: dict[str, Any] = metadata["attributes"]
        self.shape: tuple[int, ...] = tuple(metadata["shape"])
        self.dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        self.fill = metadata["fill_value"]
        self.shard_shape: tuple[int, ...] = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        codec = metadata["codecs"][0]
        configuration = codec["configuration"]
        inner = [c["name"] for c in configuration.get("codecs", [])]
        if (
            codec["name"] != "sharding_indexed"
            or inner != ["bytes", "blosc"]
            or configuration.get("index_location", "end") != "end"
            or [c["name"] for c in configuration["index_codecs"]] != ["bytes", "crc32c"]
        ):
            raise ValueError(f"{name}: the array in {place} was not written by ssl3d convert: open with direct=False")
        self.chunk: tuple[int, ...] = tuple(configuration["chunk_shape"])
        self.chunks_per_shard = tuple(s // c for s, c in zip(self.shard_shape, self.chunk))

    def read_into(self, out: np.ndarray, low: tuple[int, ...], channels: range) -> None:
        """Fill `out` (len(channels),D,H,W) from the box that starts at `low` (z,y,x) and lies inside the array.

        Raises ValueError naming the volume and the file when a chunk cannot be decoded.
        """
        high = tuple(lo + n for lo, n in zip(low, out.shape[1:]))
        for number in range(low[0] // self.shard_shape[1], -(-high[0] // self.shard_shape[1])):
            # Shards cover whole y, x planes and all channels (format.shard_shape), so they follow one another along z.
            top = number * self.shard_shape[1]
            z0, z1 = max(low[0], top), min(high[0], top + self.shard_shape[1])
            part = out[:, z0 - low[0] : z1 - low[0]]
            shard = self._shard(number)
            if shard is None:
                part[...] = self.fill
            else:
                self._read_shard(shard, part, (z0 - top, low[1], low[2]), channels)

    def _shard(self, number: int) -> Shard | None:
        """The open shard; None when it was never written because it holds only the fill value."""
        name = f"c/0/{number}/0/0"
        key = f"{self.folder}/{name}"
        digest = self.attributes.get("digest", {}).get(name, "")  # in the cache's key: a volume may be written again
        try:
            return _open_shards.get((f"{self.objects.root}/{key}", digest), lambda: self._open_shard(key))
        except FileNotFoundError as error:
            if digest:
                raise ValueError(
                    f"{self.name}: {self.objects.root}/{key} is missing: convert the volume again"
                ) from error
            return None

    def _open_shard(self, key: str) -> Shard:
        if isinstance(self.objects, LocalObjects):
            return MappedShard(self.objects.path(key), self.chunks_per_shard)
        return RemoteShard(self.objects, key, self.chunks_per_shard)

    def _read_shard(self, shard: Shard, out: np.ndarray, low: tuple[int, ...], channels: range) -> None:
        scratch = _scratch.chunk(self.chunk[1:], self.dtype)
        limit = shard.limit
        spans = [_spans(lo, lo + n, c) for lo, n, c in zip(low, out.shape[1:], self.chunk[1:])]
        sources, targets = _row_views(scratch.array, out, spans[2])
        first = [span[0][0] for span in spans]
        window: Any = tuple(slice(span[0][0], span[-1][0] + 1) for span in spans)
        base, view = shard.window(shard.index[(slice(channels.start, channels.stop), *window)])
        for i, channel in enumerate(channels):
            entries = shard.index[channel][window].tolist()
            for cz, source_z, target_z in spans[0]:
                for cy, source_y, target_y in spans[1]:
                    line = entries[cz - first[0]][cy - first[1]]
                    for (offset, length), source, target in zip(line, sources, targets):
                        if offset == MISSING:
                            target[i, target_z, target_y] = _fill_row(self.fill, target.dtype, self.dtype)
                            continue
                        end = offset + length
                        if end > limit:
                            raise self._damaged(shard, "it ends behind its file")
                        try:
                            decode(base, view, offset, end, scratch)
                        except ValueError as error:
                            raise self._damaged(shard, str(error)) from error
                        target[i, target_z, target_y] = source[source_z, source_y]

    def _damaged(self, shard: Shard, reason: str) -> ValueError:
        return ValueError(f"{self.name}: a chunk of {shard.place} is damaged ({reason}): convert the volume again")


def _spans(low: int, high: int, chunk: int) -> list[tuple[int, slice, slice]]:
    """Along one axis, for each chunk that [low, high) touches: (chunk number, slice in the chunk, slice in the box)."""
    spans = []
    for number in range(low // chunk, -(-high // chunk)):
        base = number * chunk
        a, b = max(low, base), min(high, base + chunk)
        spans.append((number, slice(a - base, b - base), slice(a - low, b - low)))
    return spans


def _row_views(
    scratch: np.ndarray, out: np.ndarray, spans: list[tuple[int, slice, slice]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each chunk along x, its part of `scratch` and of `out` with a whole x row as ONE element."""
    return [rows(scratch[:, :, source]) for _, source, _ in spans], [rows(out[..., target]) for _, _, target in spans]


def _fill_row(fill: int, row: np.dtype, dtype: np.dtype) -> np.void:
    """One row of fill values, as the element type of `_row_views`."""
    return np.full(row.itemsize // dtype.itemsize, fill, dtype=dtype).view(row)[0]
