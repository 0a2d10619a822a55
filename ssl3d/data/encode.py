"""Array -> the objects of a sharded zarr v3 array: metadata by zarr-python, shards by blosc alone.

zarr-python's own way through a shard spends several times the compression's time on bookkeeping. The bytes are those
of the specification, and any zarr v3 reader reads them: compressed chunks in Morton order (so that neighbours in space
are neighbours in the file), then (offset, nbytes) a chunk and the crc32c of that index. A chunk of zeros is not
written, nor a shard of nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import islice, product
from typing import Any

import google_crc32c
import numpy as np

from ssl3d.data import format as fmt
from ssl3d.data.blosc import ChunkEncoder

METADATA = "zarr.json"
_MISSING = 2**64 - 1
_RUN = 64  # chunks compressed in one go, 4 MB of voxels
_THREADS = 2  # that compress: the rest of a write takes as much time as one of them


class Shard:
    """The bytes of one shard object, made while they are iterated over, and what they came to: `digest`, `nbytes`."""

    def __init__(self, part: np.ndarray, shape: tuple[int, ...]) -> None:
        """`part` are the voxels (C,Z,Y,X) of a shard of `shape`, at most as large."""
        self._part, self._shape = part, shape
        self._hash = hashlib.blake2b(digest_size=16)
        self.nbytes = 0

    @property
    def digest(self) -> str:
        """blake2b of the bytes handed out so far."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        """Parts of about a megabyte: while one is written, the next are compressed and the last one digested."""
        with ThreadPoolExecutor(1, thread_name_prefix="ssl3d-digest") as pool:
            digesting: Future[None] | None = None
            for part in _encode_shard(self._part, self._shape):
                if digesting is not None:
                    digesting.result()
                digesting = pool.submit(self._hash.update, part)
                self.nbytes += len(part)
                yield part


def encode_shards(array: np.ndarray) -> Iterator[tuple[str, Shard]]:
    """(key, shard) of every shard of `array` (C,Z,Y,X) that holds something, from the lowest on.

    A shard is used up before the next is asked for: its chunks are compressed as it is written, none are kept.
    """
    shape = fmt.shard_shape(array.shape, array.dtype.itemsize)
    for number in range(math.ceil(array.shape[1] / shape[1])):
        top = number * shape[1]
        part = array[:, top : top + shape[1]]
        if part.any():
            yield f"c/0/{number}/0/0", Shard(part, shape)


def encode_metadata(array: np.ndarray, attributes: Mapping[str, Any]) -> bytes:
    """zarr.json of `array` (C,Z,Y,X) with these attributes."""
    shards = fmt.shard_shape(array.shape, array.dtype.itemsize)
    return json.dumps(_metadata(array.shape, shards, array.dtype.str) | {"attributes": dict(attributes)}).encode()


def blake2b(data: bytes) -> str:
    """The digest that is recorded of an object."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@lru_cache(maxsize=64)
def _metadata(shape: tuple[int, ...], shards: tuple[int, ...], dtype: str) -> dict[str, Any]:
    """zarr.json of an array of this shape, as zarr-python writes it, without attributes."""
    import zarr
    from zarr.codecs import BloscCodec, BytesCodec
    from zarr.storage import MemoryStore

    memory: dict[str, Any] = {}
    itemsize = np.dtype(dtype).itemsize
    zarr.create_array(
        MemoryStore(memory),
        shape=shape,
        dtype=dtype,
        chunks=(1, fmt.CHUNK, fmt.CHUNK, fmt.CHUNK),
        shards=shards,
        serializer=BytesCodec(endian="little") if itemsize > 1 else BytesCodec(),
        compressors=BloscCodec(typesize=itemsize, **fmt.BLOSC),
        filters=None,
        fill_value=0,
        dimension_names=("c", "z", "y", "x"),
    )
    return json.loads(memory[METADATA].to_bytes())


def _encode_shard(part: np.ndarray, shape: tuple[int, ...]) -> Iterator[bytes]:
    """The bytes of one shard of `shape` (C,Z,Y,X) whose voxels are `part`, in parts; two threads compress ahead."""
    grid = (shape[0], *(n // fmt.CHUNK for n in shape[1:]))
    index = np.full((*grid, 2), _MISSING, dtype="<u8")
    places = _morton(grid)
    runs = iter([places[k : k + _RUN] for k in range(0, len(places), _RUN)])
    offset = 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ssl3d-encode") as pool:
        coming = deque(pool.submit(_encode_chunks, part, run) for run in islice(runs, _THREADS + 1))
        while coming:
            compressed, lengths = coming.popleft().result()
            coming.extend(pool.submit(_encode_chunks, part, run) for run in islice(runs, 1))
            for place, length in lengths:
                index[place] = offset, length
                offset += length
            if compressed:
                yield compressed
    table = index.tobytes()
    yield table + google_crc32c.value(table).to_bytes(4, "little")


def _encode_chunks(part: np.ndarray, places: list[tuple[int, ...]]) -> tuple[bytes, list[tuple[tuple[int, ...], int]]]:
    """(the compressed chunks of `part` at these places, one after the other; place and length of those not empty)."""
    encoder = ChunkEncoder((fmt.CHUNK,) * 3, part.dtype.newbyteorder("<"), **fmt.BLOSC)
    pieces, lengths = [], []
    for place in places:
        if _take_chunk(part, place, encoder.chunk):
            pieces.append(encoder.encode())
            lengths.append((place, len(pieces[-1])))
    return b"".join(pieces), lengths


def _take_chunk(part: np.ndarray, place: tuple[int, ...], chunk: np.ndarray) -> bool:
    """Fill `chunk` with the voxels at its place (c, z, y, x), zeros behind the end; whether any of them is not zero."""
    z, y, x = (k * fmt.CHUNK for k in place[1:])
    voxels = part[place[0], z : z + fmt.CHUNK, y : y + fmt.CHUNK, x : x + fmt.CHUNK]
    if voxels.shape == chunk.shape and voxels.strides[2] == voxels.itemsize and voxels.dtype == chunk.dtype:
        # A row as one element: numpy copies it with memcpy, not voxel by voxel.
        row = np.dtype((np.void, fmt.CHUNK * voxels.itemsize))
        chunk.view(row)[...] = voxels.view(row)
    else:
        chunk[...] = 0
        chunk[tuple(slice(n) for n in voxels.shape)] = voxels
    return bool(chunk[0, 0, 0]) or bool(chunk.any())


@lru_cache(maxsize=64)
def _morton(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All places of a grid in Morton order."""

    def key(place: tuple[int, ...]) -> int:
        bits = max(max(grid) - 1, 1).bit_length()
        return sum(
            (k >> bit & 1) << (bit * len(place) + axis) for bit in range(bits) for axis, k in enumerate(place[::-1])
        )

    return sorted(product(*map(range, grid)), key=key)
