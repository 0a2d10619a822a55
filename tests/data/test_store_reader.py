"""Both ways to read a store keep the same contract; what is damaged is named."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_volumes import SHAPES, add_volume, random_image

from ssl3d.data import blosc, shard
from ssl3d.data.store import Store, open_store
from ssl3d.data.write import build_index, create_store
from ssl3d.testing.store import StoreTests, padded_box


class TestDirect(StoreTests):
    def open(self, path: str) -> Store:
        return open_store(path)


class TestThroughNumcodecs(TestDirect):
    """Where the C function is not visible, numcodecs' wrapper decodes."""

    @pytest.fixture(autouse=True)
    def wrapped(self, monkeypatch):
        monkeypatch.setattr(shard, "decode", blosc.decode_wrapped)


class TestZarrPython(StoreTests):
    def open(self, path: str) -> Store:
        return open_store(path, direct=False)


class TestUrl(StoreTests):
    @pytest.fixture
    def root(self, tmp_path) -> str:
        return f"memory://{tmp_path.name}/store.zarr"

    def open(self, path: str) -> Store:
        return open_store(path)


class TestUrlThroughZarrPython(TestUrl):
    def open(self, path: str) -> Store:
        return open_store(path, direct=False)


@pytest.fixture(scope="module")
def one_volume(tmp_path_factory) -> tuple[Store, np.ndarray]:
    root = tmp_path_factory.mktemp("one") / "store.zarr"
    create_store(root)
    image = add_volume(root, "v", 3, SHAPES[0], channels=2)
    build_index(root)
    return open_store(root), image


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.tuples(*(st.integers(-70, 100) for _ in range(3))),
    size=st.tuples(*(st.integers(1, 75) for _ in range(3))),
)
def test_any_box(one_volume, start, size):
    store, image = one_volume
    np.testing.assert_array_equal(store.read(0, start, size), padded_box(image, start, size, store.air(0)))


def the_shard(root: Path, volume: str = "volume0") -> Path:
    return root / "volumes" / volume / "c/0/0/0/0"


def spoil(path: Path, at: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize("decode", [blosc.decode_wrapped, blosc.decode_direct])
@pytest.mark.parametrize("at,value", [(4, b"\x01\x00\x00\x00"), (12, b"\xff\xff\xff\x7f"), (16, b"\xff" * 400)])
def test_a_damaged_chunk_is_named(make_store, monkeypatch, decode, at, value):
    """Its size, its length, its block offsets: a ValueError with volume and file, never a crash."""
    if decode is None:
        pytest.skip("numcodecs hides its blosc library on this platform")
    monkeypatch.setattr(shard, "decode", decode)
    root = make_store(1)
    first = int(open_store(root)._array(0, "volumes")._shard(0).index[..., 0].min())
    shard._open_shards.clear()
    spoil(the_shard(root), first + at, value)
    with pytest.raises(ValueError, match=r"volume0.*volumes/volume0/c/0/0/0/0 is damaged"):
        open_store(root).read(0, (0, 0, 0), SHAPES[0])


def test_zarr_python_names_the_damaged_volume(make_store):
    root = make_store(1)
    spoil(the_shard(root), 16, b"\xff" * 400)
    with pytest.raises(ValueError, match="volume0"):
        open_store(root, direct=False).read(0, (0, 0, 0), SHAPES[0])


def test_damaged_index_truncated_and_lost_shards_are_named(make_store):
    root = make_store(3)
    spoil(the_shard(root), the_shard(root).stat().st_size - 20, b"\x01\x02\x03")
    with pytest.raises(ValueError, match=r"volume0/c/0/0/0/0 has a damaged chunk index"):
        open_store(root).read(0, (0, 0, 0), (4, 4, 4))
    os.truncate(the_shard(root, "volume1"), 10)
    with pytest.raises(ValueError, match=r"volume1/c/0/0/0/0 is truncated"):
        open_store(root).read(1, (0, 0, 0), (4, 4, 4))
    the_shard(root, "volume2").unlink()
    with pytest.raises(ValueError, match=r"volume2.*is missing"):
        open_store(root).read(2, (0, 0, 0), (4, 4, 4))


def test_a_volume_written_again_is_read_anew(make_store):
    root = make_store(1)
    open_store(root).read(0, (0, 0, 0), SHAPES[0])
    image = add_volume(root, "volume0", 77, SHAPES[0])
    build_index(root)
    np.testing.assert_array_equal(open_store(root).read(0, (0, 0, 0), SHAPES[0]), image)


def test_open_files_are_bounded(make_store, monkeypatch):
    monkeypatch.setattr(shard._open_shards, "capacity", 3)
    shard._open_shards.clear()
    store = open_store(make_store(12, shape=(8, 9, 10)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        for row in range(12):
            store.read(row, (0, 0, 0), (4, 4, 4))
    assert len(shard._open_shards) == 3
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3


def test_threads_share_a_store(make_store):
    store = open_store(make_store(4))
    images = [random_image((1, *SHAPES[i]), i) for i in range(4)]
    failures: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(40):
            row = int(rng.integers(4))
            start = tuple(int(rng.integers(-10, n)) for n in SHAPES[row])
            expected = padded_box(images[row], start, (30, 20, 40), store.air(row))
            if not (store.read(row, start, (30, 20, 40)) == expected).all():  # type: ignore[arg-type]
                failures.append(row)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_fork_after_reading_reads_on(make_store):
    store = open_store(make_store(1))
    expected = store.read(0, (0, 0, 0), SHAPES[0])
    child = os.fork()
    if child == 0:
        os._exit(0 if (store.read(0, (0, 0, 0), SHAPES[0]) == expected).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_foreign_arrays_are_refused_with_a_remedy(make_store):
    import zarr

    root = make_store(1)
    zarr.create_array(str(root / "volumes/volume0"), shape=(1, 8, 8, 8), dtype="int16", overwrite=True)
    with pytest.raises(ValueError, match=r"volume0.*direct=False"):
        open_store(root).read(0, (0, 0, 0), (4, 4, 4))


def test_what_is_no_store_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no ssl3d store at .*absent"):
        open_store(tmp_path / "absent")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"convert \S+scans STORE, and give the STORE"):
        open_store(tmp_path / "scans")
    create_store(tmp_path / "begun.zarr")
    with pytest.raises(FileNotFoundError, match=r"index\.parquet"):
        open_store(tmp_path / "begun.zarr")
