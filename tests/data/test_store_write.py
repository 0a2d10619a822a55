"""Writing: the commit order, clean reruns, digests, and an index that repeats the arrays' attributes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr
from random_volumes import SHAPES, add_volume, random_image, statistics, volume_attributes

from ssl3d.data import format as fmt
from ssl3d.data import objects
from ssl3d.data.damage import damaged_objects
from ssl3d.data.format import LabelInfo
from ssl3d.data.store import open_store
from ssl3d.data.thumbnail import thumbnail
from ssl3d.data.write import (
    build_index,
    create_store,
    is_committed,
    remove_uncommitted,
    write_volume,
)


class Killed(BaseException):
    """Stands for a kill -9 between two objects."""


def files(root) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_order_of_objects_is_the_commit_order(tmp_path, monkeypatch):
    root, order = tmp_path / "s.zarr", []
    create_store(root)
    put = objects.LocalObjects.put_parts  # every write goes through it
    monkeypatch.setattr(
        objects.LocalObjects, "put_parts", lambda self, key, parts: (order.append(key), put(self, key, parts))
    )
    add_volume(root, "v", 0, SHAPES[0], labels=True, valid=True)
    assert order == [
        "labels/v/c/0/0/0/0", "labels/v/zarr.json", "valid/v/c/0/0/0/0", "valid/v/zarr.json",
        "volumes/v/c/0/0/0/0", "volumes/v/thumbnail.npy", "volumes/v/zarr.json",
    ]  # fmt: skip


def test_killed_anywhere_and_written_again_is_the_same_store(tmp_path, monkeypatch):
    """After each possible kill the volume is not there, and a rerun leaves the very same files."""
    clean = tmp_path / "clean.zarr"
    create_store(clean)
    add_volume(clean, "v", 0, SHAPES[0], labels=True, valid=True)
    build_index(clean)
    put = objects.LocalObjects.put_parts
    for kill_at in range(7):
        root = tmp_path / f"killed{kill_at}.zarr"
        create_store(root)
        add_volume(root, "v", 9, SHAPES[1], labels=True)  # an older version, replaced
        count = 0

        def dying(self, key, parts, kill_at=kill_at):
            nonlocal count
            if count == kill_at:
                self.path(key).parent.mkdir(parents=True, exist_ok=True)
                self.path(key + ".partial").write_bytes(next(iter(parts))[:10])
                raise Killed
            count += 1
            put(self, key, parts)

        with monkeypatch.context() as patch:
            patch.setattr(objects.LocalObjects, "put_parts", dying)
            with pytest.raises(Killed):
                add_volume(root, "v", 0, SHAPES[0], labels=True, valid=True)
        assert not is_committed(root, "v")
        assert len(build_index(root)) == 0
        if kill_at % 2:
            assert remove_uncommitted(root) == ["v"]
        add_volume(root, "v", 0, SHAPES[0], labels=True, valid=True)
        build_index(root)
        assert files(root) == files(clean)


def test_remove_uncommitted_keeps_what_is_committed(make_store):
    root = make_store(2)
    before = files(root)
    (root / "volumes/half/c/0").mkdir(parents=True)
    (root / "labels/half").mkdir()
    (root / "index.parquet.partial").write_bytes(b"x")
    assert remove_uncommitted(root) == ["half"]
    assert files(root) == before and not (root / "volumes/half").exists()


def test_digests_tell_damage(make_store):
    root = make_store(1, labels=True)
    assert damaged_objects(root, "volume0") == []
    path = root / "labels/volume0/c/0/0/0/0"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    (root / "volumes/volume0/c/0/0/0/0").unlink()
    assert damaged_objects(root, "volume0") == ["volumes/volume0/c/0/0/0/0", "labels/volume0/c/0/0/0/0"]


def test_any_zarr_reader_opens_it(make_store):
    root = make_store(1, labels=True)
    group = zarr.open_group(str(root), mode="r")
    np.testing.assert_array_equal(group["volumes/volume0"][...], random_image((1, *SHAPES[0]), 0))
    assert group["volumes/volume0"].chunks == (1, 32, 32, 32)
    assert group["volumes/volume0"].attrs["spacing"] == [3.0, 1.5, 0.8]
    assert group.attrs[fmt.FORMAT_KEY] == fmt.FORMAT_VERSION
    assert group["labels/volume0"].dtype == np.uint8


def test_index_is_rebuilt_from_the_arrays(make_store):
    root = make_store(3, labels=True)
    index = (root / fmt.INDEX_FILE).read_bytes()
    (root / fmt.INDEX_FILE).unlink()
    assert list(build_index(root)["id"]) == ["volume0", "volume1", "volume2"]
    assert (root / fmt.INDEX_FILE).read_bytes() == index
    attributes = open_store(root).attributes(1)
    add_volume(root, "volume1", 1, SHAPES[1], subject="renamed")  # the index is now older than its arrays
    frame = build_index(root)
    assert frame["subject"][1] == "renamed" and attributes.subject != "renamed" and not frame["has_label"][1]
    assert frame["valid_stats"][0][0]["count"] == np.prod(SHAPES[0])


def test_statistics_are_those_of_all_voxels_together(tmp_path):
    root = tmp_path / "s.zarr"
    create_store(root)
    images = [add_volume(root, f"v{i}", i, SHAPES[i], scale=[1 + i / 2], offset=[3.0 * i]) for i in range(3)]
    add_volume(root, "mr", 7, SHAPES[0], modality=["mr"])
    build_index(root)
    together = np.concatenate([((1 + i / 2) * image + 3.0 * i).ravel() for i, image in enumerate(images)])
    expected, found = statistics(together, "ct"), open_store(root).statistics
    assert sorted(found) == ["ct", "mr"]
    for key in ("count", "mean", "std", "minimum", "maximum", "clipped_mean", "clipped_std"):
        assert found["ct"][key] == pytest.approx(getattr(expected, key), rel=1e-9)


def test_thumbnails_are_area_means(tmp_path):
    image = random_image((1, 64, 96, 40), 0)
    small = thumbnail(image, volume_attributes(image))
    values = np.clip(image[0], -1000, 1000).astype(float)
    coarse = values.reshape(32, 2, 32, 3, 40).mean((1, 3))
    fine = np.repeat(coarse, 32, axis=2).reshape(32, 32, 32, 40).mean(-1)  # 40 voxels in 32 parts, exactly
    np.testing.assert_allclose(small.astype(float), (fine - fine.mean()) / fine.std(), atol=4e-3)
    root = tmp_path / "s.zarr"
    create_store(root)
    write_volume(root, "v", image, volume_attributes(image))
    build_index(root)
    np.testing.assert_array_equal(np.load(root / fmt.THUMBNAILS_FILE)[0], small)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"volume_id": "../up"}, "volume id"),
        ({"image": np.zeros((1, 4, 4, 4), np.float32)}, "int16"),
        ({"label": np.zeros((1, 4, 5, 9), np.uint8), "label_info": LabelInfo({})}, "label has shape"),
        ({"label": np.zeros((1, 4, 5, 6), np.uint8)}, "label_info"),
        ({"foreground_box": [[0, 0, 0], [4, 5, 7]]}, "foreground_box"),
    ],
)
def test_what_does_not_keep_the_format_is_refused(tmp_path, changes, words):
    create_store(tmp_path / "s.zarr")
    image = np.zeros((1, 4, 5, 6), np.int16)
    attributes = volume_attributes(image, foreground_box=changes.pop("foreground_box", [[0, 0, 0], [4, 5, 6]]))
    options = {"volume_id": "v", "image": image, "attributes": attributes, **changes}
    with pytest.raises(ValueError, match=words):
        write_volume(tmp_path / "s.zarr", **options)


def test_create_store_leaves_other_things_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an ssl3d store"):
        create_store(tmp_path)
    (tmp_path / "group").mkdir()
    (tmp_path / "group/zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    with pytest.raises(ValueError, match="no ssl3d store"):
        create_store(tmp_path / "group")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_index(tmp_path / "nowhere")
