"""Direct reader of a sharded zarr array on a local disk: decodes only the chunks that a box touches.

It reads the bytes that any zarr v3 reader reads: a shard is a file of blosc-compressed chunks followed by an index of
(offset, nbytes) per chunk and the index's crc32c. The index is read once per open shard, the file is mapped into
memory, and every touched chunk is decoded into a scratch chunk that stays in the CPU's cache and is copied from there.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from ssl3d.data.blosc import Destination, decode
from ssl3d.data.lru import LRU

MISSING = 2**64 - 1  # offset and nbytes of a chunk that holds only the fill value
MAX_OPEN_SHARDS = 512  # mapped files per process; a mapping holds a file descriptor, of which 1,024 are common


class Shard:
    """One mapped shard file. `index` (chunks of the shard..., 2) uint64: offset and nbytes of every chunk."""

    def __init__(self, path: Path, chunks: tuple[int, ...]) -> None:
        self.path = path
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = 16 * int(np.prod(chunks))
            if size < length + 4:
                raise ValueError(f"shard {path} is truncated ({size} bytes): convert its volume again")
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.view = memoryview(self.bytes)
        raw = bytes(self.view[size - length - 4 : size - 4])
        if google_crc32c.value(raw) != int.from_bytes(self.view[size - 4 :], "little"):
            raise ValueError(f"shard {path} has a damaged chunk index: convert its volume again")
        self.index = np.frombuffer(raw, dtype="<u8").reshape(*chunks, 2)
        self.limit = size - length - 4
        self.address = np.frombuffer(self.bytes, dtype=np.uint8).ctypes.data


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
    """A zarr v3 array (C,Z,Y,X) written by `write_volume`, read without zarr.

    Raises FileNotFoundError when the array is not there (or not committed) and ValueError when its codecs are not the
    store's; `name` says in messages which volume it belongs to.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        try:
            metadata = json.loads((folder / "zarr.json").read_bytes())
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{name}: {folder} is not in the store, or not completely written") from error
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
            raise ValueError(f"{name}: the array in {folder} was not written by ssl3d convert: open with direct=False")
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
        key = f"c/0/{number}/0/0"
        path = self.folder / key
        digest = self.attributes.get("digest", {}).get(key, "")  # in the cache's key: a volume may be written again
        try:
            return _open_shards.get((str(path), digest), lambda: Shard(path, self.chunks_per_shard))
        except FileNotFoundError as error:
            if digest:
                raise ValueError(f"{self.name}: {path} is missing: convert the volume again") from error
            return None

    def _read_shard(self, shard: Shard, out: np.ndarray, low: tuple[int, ...], channels: range) -> None:
        scratch = _scratch.chunk(self.chunk[1:], self.dtype)
        limit, view, base = shard.limit, shard.view, shard.address
        spans = [_spans(lo, lo + n, c) for lo, n, c in zip(low, out.shape[1:], self.chunk[1:])]
        rows, void = _row_views(scratch.array, out, spans[2])
        first = [span[0][0] for span in spans]
        window: Any = tuple(slice(span[0][0], span[-1][0] + 1) for span in spans)
        for i, channel in enumerate(channels):
            entries = shard.index[channel][window].tolist()
            for cz, source_z, target_z in spans[0]:
                for cy, source_y, target_y in spans[1]:
                    line = entries[cz - first[0]][cy - first[1]]
                    for (offset, length), source, target in zip(line, rows, void):
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
        return ValueError(f"{self.name}: a chunk of {shard.path} is damaged ({reason}): convert the volume again")


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
    """For each chunk along x, its part of `scratch` and of `out` with a whole x row as ONE element.

    numpy copies an element of many bytes with memcpy, more than twice as fast as a strided copy of int16.
    """
    rows, targets = [], []
    for _, source, target in spans:
        row = _void((source.stop - source.start) * scratch.itemsize)
        rows.append(scratch[:, :, source].view(row)[..., 0])
        targets.append(out[:, :, :, target].view(row)[..., 0])
    return rows, targets


@lru_cache(maxsize=4096)
def _void(n_bytes: int) -> np.dtype:
    return np.dtype((np.void, n_bytes))


def _fill_row(fill: int, row: np.dtype, dtype: np.dtype) -> np.void:
    """One row of fill values, as the element type of `_row_views`."""
    return np.full(row.itemsize // dtype.itemsize, fill, dtype=dtype).view(row)[0]
