"""Shards that we encode ourselves: zarr-python reads them, nothing is written of zeros, digests are true."""

import hashlib

import numpy as np
import pytest
import zarr
from random_volumes import add_volume

from ssl3d.data import blosc, encode
from ssl3d.data import format as fmt
from ssl3d.data.encode import encode_metadata, encode_shards
from ssl3d.data.store import open_store
from ssl3d.data.write import build_index, create_store


def pattern(shape, dtype):
    """Noise, with a zero corner: some chunks hold nothing."""
    array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    array[..., 32:, 32:] = 0
    return array


def objects_of(array, **attributes):
    shards = {}
    digests = {}
    for key, shard in encode_shards(array):
        shards[key] = b"".join(shard)
        assert shard.nbytes == len(shards[key])
        digests[key] = shard.digest
    return {**shards, "zarr.json": encode_metadata(array, {**attributes, "digest": digests})}, digests


def write(folder, found):
    for key, data in found.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


LAYOUTS = {
    "plain": lambda a: a,
    "fortran": np.asfortranarray,
    "backwards": lambda a: a[:, ::-1, :, ::-1].copy()[:, ::-1, :, ::-1],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 40, 70, 100), (2, 64, 32, 65), (1, 5, 3, 7), (3, 33, 97, 31)])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "uint16"])
def test_zarr_reads_what_was_encoded(tmp_path, shape, dtype, layout):
    array = pattern(shape, dtype)
    found, digests = objects_of(LAYOUTS[layout](array), note="kept")
    opened = zarr.open_array(write(tmp_path / "a", found), mode="r")
    assert np.array_equal(opened[...], array) and opened.attrs["note"] == "kept"
    for key, digest in digests.items():
        assert hashlib.blake2b(found[key], digest_size=16).hexdigest() == digest


def test_a_volume_of_several_shards_of_several_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(fmt, "SHARD_BYTES", 2 * 32 * 64 * 96 * 2)
    monkeypatch.setattr(encode, "_RUN", 5)
    array = pattern((1, 150, 60, 90), "int16")
    array[:, 64:128] = 0  # the second shard holds nothing
    found, digests = objects_of(array)
    assert sorted(digests) == ["c/0/0/0/0", "c/0/2/0/0"]
    own = zarr.open_array(write(tmp_path / "own", found), mode="r")
    assert np.array_equal(own[...], array) and own.shards == (1, 64, 64, 96)


def test_with_and_without_the_c_function_the_same_bytes(monkeypatch):
    array = pattern((1, 40, 70, 100), "int16")
    direct, _ = objects_of(array)
    monkeypatch.setattr(blosc, "_compress", None)
    assert objects_of(array)[0] == direct


@pytest.mark.parametrize("codec", [("lz4", 5, "bitshuffle"), ("zstd", 1, "noshuffle"), ("blosclz", 9, "shuffle")])
def test_volumes_of_any_blosc_codec_are_read(tmp_path, monkeypatch, codec):
    """A store may be older than the codec of today's volumes, or hold both."""
    encode._metadata.cache_clear()
    with monkeypatch.context() as older:
        older.setattr(fmt, "BLOSC", dict(zip(("cname", "clevel", "shuffle"), codec)))
        create_store(tmp_path / "s.zarr")
        image = add_volume(tmp_path / "s.zarr", "a", 0, (40, 70, 33))
    encode._metadata.cache_clear()
    newer = add_volume(tmp_path / "s.zarr", "b", 1, (37, 32, 65))
    build_index(tmp_path / "s.zarr")
    for direct in (True, False):
        store = open_store(tmp_path / "s.zarr", direct)
        assert np.array_equal(store.read(0, (0, 0, 0), (40, 70, 33)), image)
        assert np.array_equal(store.read(1, (0, 0, 0), (37, 32, 65)), newer)
