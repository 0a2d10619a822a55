"""Array -> the objects of a sharded zarr v3 array, in memory: metadata by zarr-python, shards by blosc alone.

zarr-python's own way through a shard spends several times the compression's time on bookkeeping. The bytes are those
of the specification, and any zarr v3 reader reads them: compressed chunks in Morton order (so that neighbours in space
are neighbours in the file), then (offset, nbytes) a chunk and the crc32c of that index. A chunk of zeros is not
written, nor a shard of nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc

from ssl3d.data import format as fmt
from ssl3d.data.blosc import blosc

METADATA = "zarr.json"
_MISSING = 2**64 - 1
assert not blosc.use_threads  # one compression context a thread, and no pool that a fork would break


def encode_array(array: np.ndarray, attributes: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, str]]:
    """({key: bytes} of `array` (C,Z,Y,X), metadata last; {shard key: blake2b}, which the attributes carry as `digest`).

    `stored_bytes` among the attributes is filled in as well.
    """
    shards = dict(_shards(array))
    digest = {key: blake2b(data) for key, data in shards.items()}
    own = {**attributes, "digest": digest}
    if "stored_bytes" in own:
        own["stored_bytes"] = sum(map(len, shards.values()))
    shards_of = fmt.shard_shape(array.shape, array.dtype.itemsize)
    metadata = _metadata(array.shape, shards_of, array.dtype.str) | {"attributes": own}
    return {**shards, METADATA: json.dumps(metadata).encode()}, digest


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
        compressors=BloscCodec(typesize=itemsize, **fmt.BLOSC),  # type: ignore[arg-type]
        filters=None,
        fill_value=0,
        dimension_names=("c", "z", "y", "x"),
    )
    return json.loads(memory[METADATA].to_bytes())


def _shards(array: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """(key, bytes) of every shard that holds something, from the lowest on."""
    shape = fmt.shard_shape(array.shape, array.dtype.itemsize)
    for number in range(math.ceil(array.shape[1] / shape[1])):
        top = number * shape[1]
        encoded = _encode_shard(array[:, top : top + shape[1]], shape)
        if encoded is not None:
            yield f"c/0/{number}/0/0", encoded


def _encode_shard(part: np.ndarray, shape: tuple[int, ...]) -> bytes | None:
    """The bytes of one shard of `shape` (C,Z,Y,X) whose voxels are `part`, at most as large; None when all are zero."""
    grid = (shape[0], *(n // fmt.CHUNK for n in shape[1:]))
    index = np.full((*grid, 2), _MISSING, dtype="<u8")
    codec = Blosc(cname=fmt.BLOSC["cname"], clevel=fmt.BLOSC["clevel"], shuffle=Blosc.BITSHUFFLE)
    little = part.dtype.newbyteorder("<")
    chunk = np.zeros((fmt.CHUNK,) * 3, little)
    pieces, offset = [], 0
    for c, z, y, x in _morton(grid):
        low = [k * fmt.CHUNK for k in (z, y, x)]
        voxels = part[(c, *(slice(lo, lo + fmt.CHUNK) for lo in low))]
        if voxels.shape != chunk.shape:
            chunk[...] = 0
        chunk[tuple(slice(n) for n in voxels.shape)] = voxels
        if not chunk.any():
            continue
        piece = codec.encode(chunk)
        index[c, z, y, x] = offset, len(piece)
        pieces.append(piece)
        offset += len(piece)
    if not pieces:
        return None
    table = index.tobytes()
    return b"".join([*pieces, table, google_crc32c.value(table).to_bytes(4, "little")])


@lru_cache(maxsize=64)
def _morton(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All places of a grid in Morton order."""

    def key(place: tuple[int, ...]) -> int:
        bits = max(max(grid) - 1, 1).bit_length()
        return sum(
            (k >> bit & 1) << (bit * len(place) + axis) for bit in range(bits) for axis, k in enumerate(place[::-1])
        )

    return sorted(product(*map(range, grid)), key=key)
