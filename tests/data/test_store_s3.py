"""A store behind s3:// keeps the contract of every store, against a server that speaks S3."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest
from random_volumes import SHAPES, add_volume

from ssl3d.data import objects, shard
from ssl3d.data.objects import StoreError, open_objects
from ssl3d.data.store import Store, open_store
from ssl3d.data.thumbnail_file import ThumbnailFile
from ssl3d.data.write import build_index, create_store, is_committed, remove_uncommitted
from ssl3d.testing.store import StoreTests

pytestmark = pytest.mark.slow  # a server takes ten milliseconds a request


class TestS3(StoreTests):
    @pytest.fixture
    def root(self, s3_bucket) -> str:
        return f"{s3_bucket()}/store.zarr"

    def open(self, path: str) -> Store:
        return open_store(path)


@pytest.fixture
def one(s3_bucket) -> tuple[str, np.ndarray]:
    root = f"{s3_bucket()}/one.zarr"
    create_store(root)
    image = add_volume(root, "v", 3, SHAPES[0], labels=True)
    build_index(root)
    return root, image


def test_only_touched_chunks_are_fetched(one, monkeypatch):
    root, image = one
    monkeypatch.setattr(shard, "WORTH_A_REQUEST", 0)
    store = open_store(root)
    store.read(0, (0, 0, 0), (4, 4, 4))
    fetched = []
    get_ranges = objects.RemoteObjects.get_ranges
    monkeypatch.setattr(
        objects.RemoteObjects, "get_ranges", lambda self, k, spans: fetched.extend(spans) or get_ranges(self, k, spans)
    )
    np.testing.assert_array_equal(store.read(0, (33, 40, 2), (5, 20, 9)), image[:, 33:38, 40:60, 2:11])
    assert 0 < sum(end - first for first, end in fetched) < 0.3 * store.cell("bytes", 0)


def test_a_forked_and_a_pickled_reader_connect_anew(one):
    root, image = one
    store = open_store(root)
    expected = store.read(0, (0, 0, 0), image.shape[1:])
    np.testing.assert_array_equal(expected, image)
    child = os.fork()
    if child == 0:
        os._exit(0 if (store.read(0, (0, 0, 0), image.shape[1:]) == image).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    twin = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(twin.read(0, (1, 2, 3), (9, 9, 9)), image[:, 1:10, 2:11, 3:12])


def test_half_written_volumes_are_removed_and_others_kept(one):
    root, _ = one
    store = open_objects(root)
    store.put("volumes/half/c/0/0/0/0", b"x")
    store.put("labels/half/zarr.json", b"{}")
    assert store.holding("volumes", "zarr.json") == ["v"] and not is_committed(root, "half")
    assert remove_uncommitted(root) == ["half"]
    assert store.names("volumes") == ["v", "zarr.json"] and store.names("labels") == ["v", "zarr.json"]
    store.remove("nothing/there")


def test_exclusive_and_streamed_writes(one):
    store = open_objects(one[0])
    assert store.put_new("new", b"1") and not store.put_new("new", b"2") and store.get("new") == b"1"
    parts = [os.urandom(3 << 20) for _ in range(4)]  # above one part of a multipart upload
    store.put_parts("large", iter(parts))
    assert store.size("large") == 12 << 20
    assert store.get_ranges("large", [(1, 5), (3 << 20, (3 << 20) + 4)]) == [parts[0][1:5], parts[1][:4]]

    def broken():
        yield parts[0] * 3
        raise RuntimeError("the source ended")

    with pytest.raises(RuntimeError, match="source ended"):
        store.put_parts("broken", broken())
    assert not store.exists("broken")


def test_thumbnails_are_read_by_the_row(one):
    root, _ = one
    own = np.load(io.BytesIO(open_objects(root).get("volumes/v/thumbnail.npy")))
    np.testing.assert_array_equal(ThumbnailFile(root)[0], own)


def test_what_is_wrong_with_the_place_is_one_sentence(s3_bucket, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no ssl3d store at s3://"):
        open_store(f"{s3_bucket()}/nothing.zarr")
    with pytest.raises(StoreError, match="no such bucket"):
        create_store("s3://there-is-none-of-this-name/store.zarr")
    with pytest.raises(ValueError, match=r"nonsense://.*://"):
        open_store("nonsense://bucket/store.zarr")
