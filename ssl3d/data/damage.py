"""Which volumes of a store are not what was written: told by digests, or cheaply by what changed after the commit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ssl3d.data import format as fmt
from ssl3d.data.encode import METADATA, blake2b
from ssl3d.data.format import VolumeAttributes
from ssl3d.data.objects import LocalObjects, Objects, StoreError, open_objects
from ssl3d.data.thumbnail_file import THUMBNAIL_OBJECT


def damaged_objects(root: str | Path, volume_id: str) -> list[str]:
    """Keys of a volume's objects (labels and valid included) that are missing, unreadable or not what was written."""
    objects = open_objects(root)
    damaged = []
    for kind in fmt.KINDS:
        folder = f"{kind}/{volume_id}"
        if not objects.exists(f"{folder}/{METADATA}"):
            continue
        digest = _digest(objects, folder, kind)
        if digest is None:
            damaged.append(f"{folder}/{METADATA}")
            continue
        for key, expected in digest.items():
            full = f"{folder}/{key}"
            if not _holds(objects, full, expected):
                damaged.append(full)
        if kind == fmt.VOLUMES and not objects.exists(f"{folder}/{THUMBNAIL_OBJECT}"):
            damaged.append(f"{folder}/{THUMBNAIL_OBJECT}")
    return damaged


def _holds(objects: Objects, key: str, expected: str) -> bool:
    """Whether an object can be read and has the digest `expected`. Raises StoreError when the store is out of reach."""
    try:
        return blake2b(objects.get(key)) == expected
    except StoreError:
        raise
    except OSError:  # missing, or on a bad sector
        return False


def _digest(objects: Objects, folder: str, kind: str) -> dict[str, str] | None:
    """{shard key: digest} that the metadata of an array records; None when they do not parse."""
    try:
        attributes = json.loads(objects.get(f"{folder}/{METADATA}"))["attributes"]
        if kind == fmt.VOLUMES:
            VolumeAttributes.from_json(attributes)
        return dict(attributes["digest"])
    except (ValueError, TypeError, KeyError):
        return None


def suspect(root: str | Path, volume_id: str) -> bool:
    """Whether a file of a committed volume is missing or was changed after the commit; always False behind a URL.

    A commit is the last write to a volume, so a later time of change is no proof of damage, but a reason to look. It
    costs a look at each file's entry; a full `damaged_objects` reads the files.
    """
    objects = open_objects(root)
    if not isinstance(objects, LocalObjects):
        return False
    commit = objects.path(f"{fmt.VOLUMES}/{volume_id}/{METADATA}")
    try:
        committed = commit.stat().st_mtime_ns
        digest = _digest(objects, f"{fmt.VOLUMES}/{volume_id}", fmt.VOLUMES)
        if digest is None:
            return True
        keys = [f"{fmt.VOLUMES}/{volume_id}/{key}" for key in (*digest, THUMBNAIL_OBJECT)]
        for kind in fmt.KINDS[1:]:
            folder = objects.path(f"{kind}/{volume_id}")
            keys += [f"{kind}/{volume_id}/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()]
        return any(objects.path(key).stat().st_mtime_ns > committed for key in keys)
    except FileNotFoundError:
        return True


def note_damage(root: str | Path, damaged: Mapping[str, Iterable[str]]) -> None:
    """Remember {volume id: keys} found damaged, so that the next conversion of their sources makes them again.

    What is known already stays. Raises StoreError when the store cannot be written.
    """
    objects = open_objects(root)
    known = {**noted_damage(root), **{name: sorted(keys) for name, keys in damaged.items()}}
    objects.put(fmt.DAMAGED_FILE, json.dumps(known, indent=1, sort_keys=True).encode())


def noted_damage(root: str | Path) -> dict[str, list[str]]:
    """{volume id: keys} that `note_damage` remembered and that have not been made again."""
    objects = open_objects(root)
    return json.loads(objects.get(fmt.DAMAGED_FILE)) if objects.exists(fmt.DAMAGED_FILE) else {}


def forget_damage(root: str | Path, repaired: Iterable[str]) -> None:
    """Strike volumes off the list of damaged ones; the list goes with its last entry."""
    known, mended = noted_damage(root), frozenset(repaired)
    left = {name: keys for name, keys in known.items() if name not in mended}
    objects = open_objects(root)
    if left:
        objects.put(fmt.DAMAGED_FILE, json.dumps(left, indent=1, sort_keys=True).encode())
    elif known:
        objects.remove(fmt.DAMAGED_FILE)
