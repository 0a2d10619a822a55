"""Write a store: encode a volume in memory, then put its objects so that the last one is the commit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ssl3d.data import format as fmt
from ssl3d.data.encode import METADATA, encode_metadata, encode_shards
from ssl3d.data.format import ChannelStats, LabelInfo, VolumeAttributes
from ssl3d.data.index import build_index
from ssl3d.data.objects import Objects, open_objects
from ssl3d.data.thumbnail import perceptual_hash, thumbnail
from ssl3d.data.thumbnail_file import THUMBNAIL_OBJECT, encode_thumbnail

__all__ = [
    "build_index",
    "channel_stats",
    "create_store",
    "is_committed",
    "remove_uncommitted",
    "uncommit",
    "write_volume",
]

_NOT_CONTENT = (fmt.LOCK_FILE, fmt.WRITER_FILE, *fmt.KINDS)  # what a store that was only begun may hold


def create_store(root: str | Path) -> None:
    """Make an empty store at a path or fsspec URL; a store that is there already is left as it is.

    Raises ValueError when `root` is a store of another format version, or holds something else.
    """
    objects = open_objects(root)
    if objects.exists(METADATA):
        version = json.loads(objects.get(METADATA)).get("attributes", {}).get(fmt.FORMAT_KEY)
        if version != fmt.FORMAT_VERSION:
            raise ValueError(
                f"{root} is a zarr group but no ssl3d store of version {fmt.FORMAT_VERSION}: choose another path"
            )
    else:
        check_new(root)
    for kind in fmt.KINDS:
        if not objects.exists(f"{kind}/{METADATA}"):
            objects.put(f"{kind}/{METADATA}", _group_metadata({}))
    if not objects.exists(METADATA):  # last: a store exists once its root does
        objects.put(METADATA, _group_metadata({fmt.FORMAT_KEY: fmt.FORMAT_VERSION}))


def check_new(root: str | Path) -> None:
    """Raises ValueError when a place without a store holds anything but the rests of one just begun."""
    objects = open_objects(root)
    if any(name not in _NOT_CONTENT and not name.endswith(".partial") for name in objects.names("")):
        raise ValueError(f"{root} exists and is not an ssl3d store: choose an empty or a new path for the store")


def is_committed(root: str | Path, volume_id: str) -> bool:
    """Whether the volume is completely written: its `zarr.json` is the last object of a write."""
    return open_objects(root).exists(f"{fmt.VOLUMES}/{volume_id}/{METADATA}")


def write_volume(
    root: str | Path,
    volume_id: str,
    image: np.ndarray,
    attributes: VolumeAttributes,
    *,
    label: np.ndarray | None = None,
    label_info: LabelInfo | None = None,
    valid: np.ndarray | None = None,
    label_original: np.ndarray | None = None,
    confirm: Callable[[], None] | None = None,
) -> None:
    """Write one volume and all that belongs to it; what an earlier write left under this id is replaced.

    `image` (C,Z,Y,X) int16; `label`, `valid` (1,Z,Y,X); `label_original` (1,Z',Y',X') on the original grid.
    `attributes.digest` and `perceptual_hash` are filled in. Order: uncommit and clear, labels, valid and original
    labels, the image's shards, and its `zarr.json` last, so that a reader sees the whole volume or nothing of it.
    `confirm` is called just before that commit and may raise to prevent it.
    Raises ValueError on an id, shape, dtype or attribute that does not keep the format, StoreError when the target is
    full, read-only or cannot be reached.
    """
    _check(volume_id, image, attributes, label, label_info, valid, label_original)
    objects = open_objects(root)
    uncommit(root, volume_id)
    for kind in fmt.KINDS:
        objects.remove(f"{kind}/{volume_id}")

    info = {} if label_info is None else label_info.to_json()
    extras: list[tuple[str, np.ndarray | None, dict[str, Any]]] = [
        (fmt.LABELS, label, info),
        (fmt.VALID, None if valid is None else (valid != 0).view(np.uint8), {}),
        (fmt.LABELS_ORIGINAL, label_original, {k: v for k, v in info.items() if k != "coordinates"}),
    ]
    for kind, array, array_attributes in extras:
        if array is not None:
            digest, _ = _put_shards(objects, f"{kind}/{volume_id}", array)
            metadata = encode_metadata(array, {**array_attributes, "digest": digest})
            objects.put(f"{kind}/{volume_id}/{METADATA}", metadata)

    folder = f"{fmt.VOLUMES}/{volume_id}"
    with ThreadPoolExecutor(1, thread_name_prefix="ssl3d-thumbnail") as pool:
        looks = pool.submit(thumbnail, image, attributes, valid)
        attributes.digest, attributes.stored_bytes = _put_shards(objects, folder, image)
    small = looks.result()
    attributes.perceptual_hash = perceptual_hash(small)
    objects.put(f"{folder}/{THUMBNAIL_OBJECT}", encode_thumbnail(small))
    metadata = encode_metadata(image, attributes.to_json())
    if confirm is not None:
        confirm()
    objects.put(f"{folder}/{METADATA}", metadata)


def channel_stats(values: np.ndarray) -> ChannelStats:
    """What the conversion keeps of a channel's values: moments, extremes, percentiles, moments after clipping."""
    low, middle, high = (float(v) for v in np.percentile(values, [0.5, 50, 99.5]))
    clipped = np.clip(values, low, high)
    return ChannelStats(
        values.size, float(values.mean()), float(values.std()), float(values.min()), float(values.max()),
        low, middle, high, low, high, float(clipped.mean()), float(clipped.std()),
    )  # fmt: skip


def uncommit(root: str | Path, volume_id: str) -> None:
    """From here on the volume does not exist; what is left of it goes with `remove_uncommitted` or the next write."""
    open_objects(root).remove(f"{fmt.VOLUMES}/{volume_id}/{METADATA}")


def remove_uncommitted(root: str | Path) -> list[str]:
    """Remove what killed writes left behind; returns the ids of the volumes that had been begun. Sorted."""
    objects = open_objects(root)
    committed = frozenset(objects.holding(fmt.VOLUMES, METADATA))
    begun: set[str] = set()
    for kind in fmt.KINDS:
        for name in objects.names(kind):
            if name.startswith(METADATA):
                continue
            if name not in committed:
                begun.add(name)
                objects.remove(f"{kind}/{name}")
    for folder in ("", *fmt.KINDS):
        for name in objects.names(folder):
            if name.endswith(".partial"):
                objects.remove(f"{folder}/{name}" if folder else name)
    return sorted(begun)


def _put_shards(objects: Objects, folder: str, array: np.ndarray) -> tuple[dict[str, str], int]:
    """Put the shards of an array while they are compressed; ({key: blake2b}, bytes of all of them)."""
    digest, size = {}, 0
    for key, shard in encode_shards(array):
        objects.put_parts(f"{folder}/{key}", shard)
        digest[key] = shard.digest
        size += shard.nbytes
    return digest, size


def _group_metadata(attributes: Mapping[str, Any]) -> bytes:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}, indent=2).encode()


def _check(
    volume_id: str,
    image: np.ndarray,
    attributes: VolumeAttributes,
    label: np.ndarray | None,
    label_info: LabelInfo | None,
    valid: np.ndarray | None,
    label_original: np.ndarray | None,
) -> None:
    """Raise ValueError naming what does not keep the format."""
    if not fmt.ID_PATTERN.fullmatch(volume_id):
        raise ValueError(f"volume id '{volume_id}' may only hold letters, digits, '.', '_' and '-'")
    if image.ndim != 4 or image.dtype != np.int16 or 0 in image.shape:
        raise ValueError(f"volume {volume_id}: image must be (C,Z,Y,X) int16, got {image.shape} {image.dtype}")
    for name in ("scale", "offset", "modality", "foreground_stats", "valid_stats"):
        if len(getattr(attributes, name)) != image.shape[0]:
            raise ValueError(
                f"volume {volume_id}: attribute '{name}' needs an entry for each of {image.shape[0]} channels"
            )
    low, high = np.asarray(attributes.foreground_box)
    if (low < 0).any() or (high > image.shape[1:]).any() or (low >= high).any():
        raise ValueError(
            f"volume {volume_id}: foreground_box {attributes.foreground_box} is empty or leaves the volume"
        )
    for name, array in (("label", label), ("valid", valid)):
        if array is not None and array.shape != (1, *image.shape[1:]):
            raise ValueError(f"volume {volume_id}: {name} has shape {array.shape}, expected {(1, *image.shape[1:])}")
    for name, array in (("label", label), ("label_original", label_original)):
        if array is not None and (array.dtype not in (np.uint8, np.uint16) or array.ndim != 4 or label_info is None):
            raise ValueError(f"volume {volume_id}: {name} must be (1,Z,Y,X) uint8 or uint16 and come with label_info")
    stats = [*attributes.foreground_stats, *attributes.valid_stats]
    if not all(np.isfinite(value) for s in stats for value in dataclasses.astuple(s)):
        raise ValueError(f"volume {volume_id}: its intensity statistics are not finite")
