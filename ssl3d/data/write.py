"""Write a store: encode a volume in memory, then put its objects so that the last one is the commit."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec
from zarr.storage import MemoryStore

from ssl3d.data import format as fmt
from ssl3d.data.format import LabelInfo, VolumeAttributes
from ssl3d.data.index import METADATA, THUMBNAIL_OBJECT, build_index
from ssl3d.data.objects import Objects, open_objects
from ssl3d.data.thumbnail import thumbnail

__all__ = ["build_index", "create_store", "damaged_objects", "is_committed", "remove_uncommitted", "write_volume"]


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
    elif any(name not in (fmt.LOCK_FILE, *fmt.KINDS) for name in objects.names("")):
        raise ValueError(f"{root} exists and is not an ssl3d store: choose an empty or a new path")
    for kind in fmt.KINDS:
        if not objects.exists(f"{kind}/{METADATA}"):
            objects.put(f"{kind}/{METADATA}", _group_metadata({}))
    if not objects.exists(METADATA):  # last: a store exists once its root does
        objects.put(METADATA, _group_metadata({fmt.FORMAT_KEY: fmt.FORMAT_VERSION}))


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
) -> None:
    """Write one volume and all that belongs to it; what an earlier write left under this id is replaced.

    `image` (C,Z,Y,X) int16; `label`, `valid` (1,Z,Y,X); `label_original` (1,Z',Y',X') on the original grid.
    `attributes.digest` is filled in. Order: uncommit and clear, labels, valid and original labels, the image's shards,
    and its `zarr.json` last, so that a reader sees the whole volume or nothing of it.
    Raises ValueError on an id, shape, dtype or attribute that does not keep the format.
    """
    _check(volume_id, image, attributes, label, label_info, valid, label_original)
    objects = open_objects(root)
    objects.remove(f"{fmt.VOLUMES}/{volume_id}/{METADATA}")  # first: from here on the volume does not exist
    for kind in fmt.KINDS:
        objects.remove(f"{kind}/{volume_id}")

    info = {} if label_info is None else label_info.to_json()
    extras: list[tuple[str, np.ndarray | None, dict[str, Any]]] = [
        (fmt.LABELS, label, info),
        (fmt.VALID, None if valid is None else (valid != 0).astype(np.uint8), {}),
        (fmt.LABELS_ORIGINAL, label_original, {k: v for k, v in info.items() if k != "coordinates"}),
    ]
    for kind, array, array_attributes in extras:
        if array is not None:
            encoded, _ = _encode(array, array_attributes)
            _put(objects, f"{kind}/{volume_id}", encoded)

    encoded, attributes.digest = _encode(image, attributes.to_json())
    encoded[THUMBNAIL_OBJECT] = _npy(thumbnail(image, attributes, valid))
    _put(objects, f"{fmt.VOLUMES}/{volume_id}", encoded)


def remove_uncommitted(root: str | Path) -> list[str]:
    """Remove what killed writes left behind; returns the ids of the volumes that had been begun. Sorted."""
    objects = open_objects(root)
    committed = {name for name in objects.names(fmt.VOLUMES) if is_committed(root, name)}
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


def damaged_objects(root: str | Path, volume_id: str) -> list[str]:
    """Keys of a volume's shard objects (labels and valid included) that are missing or not what was written."""
    objects = open_objects(root)
    damaged = []
    for kind in fmt.KINDS:
        folder = f"{kind}/{volume_id}"
        if objects.exists(f"{folder}/{METADATA}"):
            digest = json.loads(objects.get(f"{folder}/{METADATA}"))["attributes"]["digest"]
            for key, expected in digest.items():
                full = f"{folder}/{key}"
                if not objects.exists(full) or _blake2b(objects.get(full)) != expected:
                    damaged.append(full)
    return damaged


def _encode(array: np.ndarray, attributes: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, str]]:
    """({key: bytes} of a zarr array whose attributes carry its digest, {shard key: blake2b})."""
    memory: dict[str, Any] = {}
    encoded = zarr.create_array(
        MemoryStore(memory),
        shape=array.shape,
        dtype=array.dtype,
        chunks=(1, fmt.CHUNK, fmt.CHUNK, fmt.CHUNK),
        shards=fmt.shard_shape(array.shape, array.dtype.itemsize),
        serializer=BytesCodec(endian="little") if array.dtype.itemsize > 1 else BytesCodec(),
        compressors=BloscCodec(typesize=array.dtype.itemsize, **fmt.BLOSC),  # type: ignore[arg-type]
        filters=None,
        fill_value=0,
        dimension_names=("c", "z", "y", "x"),
    )
    encoded[...] = array
    shards = {key: buffer.to_bytes() for key, buffer in memory.items() if key != METADATA}
    digest = {key: _blake2b(data) for key, data in sorted(shards.items())}
    encoded.update_attributes({**attributes, "digest": digest})
    metadata = json.dumps(json.loads(memory[METADATA].to_bytes()))  # zarr's indentation would triple it
    return {**dict(sorted(shards.items())), METADATA: metadata.encode()}, digest


def _put(objects: Objects, folder: str, encoded: dict[str, bytes]) -> None:
    """Put the objects of an array, its metadata last."""
    for key, data in encoded.items():
        if key != METADATA:
            objects.put(f"{folder}/{key}", data)
    objects.put(f"{folder}/{METADATA}", encoded[METADATA])


def _group_metadata(attributes: Mapping[str, Any]) -> bytes:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}, indent=2).encode()


def _blake2b(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


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
