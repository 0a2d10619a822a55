"""Conformance of a store: inherit StoreTests, say how a store is opened, and pytest holds it to the contract."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl3d.data import format as fmt
from ssl3d.data.format import ChannelStats, LabelInfo, VolumeAttributes
from ssl3d.data.store import Store
from ssl3d.data.write import build_index, create_store, write_volume

BOXES = 60  # random boxes a test reads


def plain_attributes(image: np.ndarray, **changes: Any) -> VolumeAttributes:
    """Valid attributes for any image (C,Z,Y,X), of modality "other"."""
    c, *shape = image.shape
    stats = [ChannelStats(1, 0.0, 1.0, -5.0, 5.0, -4.0, 0.0, 4.0, -4.0, 4.0, 0.0, 1.0)] * c
    values: dict[str, Any] = {
        "spacing": [2.5, 1.0, 0.5], "affine": np.eye(4).tolist(), "scale": [1.0] * c, "offset": [0.0] * c,
        "modality": ["other"] * c, "original_affine": np.eye(4).tolist(), "original_shape": shape[::-1],
        "original_spacing": [0.5, 1.0, 2.5], "original_orientation": "RAS", "foreground_box": [[0, 0, 0], shape],
        "foreground_stats": stats, "valid_stats": stats, "subject": "s", "session": "1", "fingerprint": "f",
        "source": "made.nii.gz",
    }  # fmt: skip
    return VolumeAttributes(**{**values, **changes})


def padded_box(array: np.ndarray, start: tuple[int, ...], size: tuple[int, ...], fill: np.ndarray) -> np.ndarray:
    """What `Store.read` must return, by numpy alone: the box of `array` (C,Z,Y,X), `fill` (C,) outside of it."""
    out = np.empty((array.shape[0], *size), dtype=array.dtype)
    out[...] = fill[:, None, None, None]
    low = [max(0, s) for s in start]
    high = [min(n, s + d) for n, s, d in zip(array.shape[1:], start, size)]
    if all(h > lo for lo, h in zip(low, high)):
        target = tuple(slice(lo - s, h - s) for lo, h, s in zip(low, high, start))
        out[(slice(None), *target)] = array[(slice(None), *map(slice, low, high))]
    return out


class StoreTests:
    """Subclass as `class TestMine(StoreTests)` and define `open`; `root` may be replaced to write elsewhere.

    The store holds `several` (two channels, several shards along z, labels, valid), `sparse` (most chunks empty) and
    `small` (smaller than a chunk, scaled), none of them cubic.
    """

    def open(self, path: str) -> Store:
        """Open the store at `path` the way that is tested."""
        raise NotImplementedError

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        """Where the store is written."""
        return str(tmp_path / "store.zarr")

    @pytest.fixture
    def arrays(self, root: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, np.ndarray]]:
        """Write the store; {volume id: {kind: array}}."""
        monkeypatch.setattr(fmt, "SHARD_BYTES", 1 << 20)  # so that a small volume has several shards
        rng = np.random.default_rng(0)
        several = rng.integers(-2000, 2000, (2, 130, 70, 90)).astype(np.int16)
        sparse = np.zeros((1, 70, 100, 40), dtype=np.int16)
        sparse[0, 40:44, 64:96, 5] = 7
        small = rng.integers(-30000, 30000, (1, 9, 20, 31)).astype(np.int16)
        label = (several[:1] > 0).astype(np.uint8) + (several[:1] > 1500)
        info = LabelInfo({0: "background", 1: "organ", 2: "tumour"}, 255, {1: [[1, 2, 3]], 2: [[4, 5, 6]]})
        wide = rng.integers(0, 60000, (1, 33, 40, 50)).astype(np.uint16)
        create_store(root)
        write_volume(
            root, "several", several, plain_attributes(several, targets={"age": 61.0}),
            label=label, label_info=info, valid=(several[:1] != 3), label_original=wide,
        )  # fmt: skip
        write_volume(root, "sparse", sparse, plain_attributes(sparse))
        write_volume(root, "small", small, plain_attributes(small, scale=[0.5], offset=[2.0]))
        build_index(root)
        valid = (several[:1] != 3).astype(np.uint8)
        return {
            "several": {fmt.VOLUMES: several, fmt.LABELS: label, fmt.VALID: valid, fmt.LABELS_ORIGINAL: wide},
            "sparse": {fmt.VOLUMES: sparse},
            "small": {fmt.VOLUMES: small},
        }

    @pytest.fixture
    def store(self, root: str, arrays: dict[str, dict[str, np.ndarray]]) -> Store:
        """The open store."""
        return self.open(root)

    def row(self, store: Store, volume_id: str) -> int:
        return [store.volume_id(row) for row in range(len(store))].index(volume_id)

    def test_the_index_describes_every_volume(self, store: Store, arrays: dict[str, dict[str, np.ndarray]]) -> None:
        assert list(store.index.columns) == list(fmt.INDEX_COLUMNS)
        assert list(store.index["id"]) == sorted(arrays)
        for row, volume_id in enumerate(store.index["id"]):
            assert store.shape(row) == arrays[volume_id][fmt.VOLUMES].shape
            assert store.index["shape"][row] == list(store.shape(row)[1:])
            assert bool(store.index["has_label"][row]) == (fmt.LABELS in arrays[volume_id])
            assert bool(store.index["has_valid"][row]) == (fmt.VALID in arrays[volume_id])

    def test_attributes_come_back_whole(self, store: Store) -> None:
        row = self.row(store, "several")
        attributes = store.attributes(row)
        assert attributes.spacing == [2.5, 1.0, 0.5] and attributes.targets == {"age": 61.0}
        assert sorted(attributes.digest) == [f"c/0/{i}/0/0" for i in range(5)]
        assert store.label_info(row).classes == {0: "background", 1: "organ", 2: "tumour"}
        assert store.label_info(row).coordinates[2] == [[4, 5, 6]] and store.label_info(row).ignore == 255

    def test_random_boxes_are_the_written_voxels(self, store: Store, arrays: dict[str, dict[str, np.ndarray]]) -> None:
        """Inside, across shards, partly and wholly outside; every kind, all channels and one."""
        rng = np.random.default_rng(1)
        for volume_id, kinds in arrays.items():
            row = self.row(store, volume_id)
            for kind, array in kinds.items():
                fill = store.air(row) if kind == fmt.VOLUMES else np.zeros(1, dtype=array.dtype)
                for _ in range(BOXES // len(kinds)):
                    start = tuple(int(rng.integers(-40, n + 5)) for n in array.shape[1:])
                    size = tuple(int(n) for n in rng.integers(1, 80, 3))
                    expected = padded_box(array, start, size, fill)
                    box = store.read(row, start, size, kind)  # type: ignore[arg-type]
                    assert box.dtype == array.dtype
                    np.testing.assert_array_equal(box, expected)
                    channel = int(rng.integers(array.shape[0]))
                    one = store.read(row, start, size, kind, channel=channel)  # type: ignore[arg-type]
                    np.testing.assert_array_equal(one, expected[channel : channel + 1])

    def test_whole_volumes(self, store: Store, arrays: dict[str, dict[str, np.ndarray]]) -> None:
        for volume_id, kinds in arrays.items():
            for kind, array in kinds.items():
                row = self.row(store, volume_id)
                np.testing.assert_array_equal(store.read(row, (0, 0, 0), array.shape[1:], kind), array)

    def test_outside_is_the_stored_value_of_low(self, store: Store) -> None:
        row = self.row(store, "small")  # low is -4, value = 0.5 * stored + 2
        assert store.air(row).tolist() == [-12]
        assert (store.read(row, (-50, 0, 0), (4, 5, 6)) == -12).all()

    def test_reads_into_a_part_of_a_batch(self, store: Store, arrays: dict[str, dict[str, np.ndarray]]) -> None:
        batch = np.full((3, 2, 40, 33, 50), 99, dtype=np.int16)
        row = self.row(store, "several")
        out = store.read(row, (20, 30, 40), (40, 33, 50), out=batch[1])
        assert np.shares_memory(out, batch)
        np.testing.assert_array_equal(batch[1], arrays["several"][fmt.VOLUMES][:, 20:60, 30:63, 40:90])
        assert (batch[0] == 99).all() and (batch[2] == 99).all()
        with pytest.raises(ValueError, match="out must be"):
            store.read(row, (0, 0, 0), (40, 33, 50), out=batch[1].astype(np.int32))

    def test_travels_to_another_process(self, store: Store) -> None:
        row = self.row(store, "several")
        before = store.read(row, (60, 5, 6), (10, 20, 30))
        twin = pickle.loads(pickle.dumps(store))
        np.testing.assert_array_equal(twin.read(row, (60, 5, 6), (10, 20, 30)), before)

    def test_half_written_volumes_are_not_seen(self, root: str, store: Store) -> None:
        from ssl3d.data.objects import open_objects

        open_objects(root).remove(f"{fmt.VOLUMES}/sparse/zarr.json")
        with pytest.raises(FileNotFoundError, match="sparse"):
            self.open(root).read(self.row(store, "sparse"), (0, 0, 0), (4, 4, 4))
        build_index(root)
        assert list(self.open(root).index["id"]) == ["several", "small"]

    def test_a_missing_store_is_named(self, root: str) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            self.open(root + "nowhere")
