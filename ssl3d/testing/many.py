"""A store of as many volumes as wanted: every one's metadata is its own, their voxels are those of a few models."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from ssl3d.data import format as fmt
from ssl3d.data.encode import METADATA
from ssl3d.data.thumbnail_file import THUMBNAIL_OBJECT
from ssl3d.data.write import create_store, write_volume
from ssl3d.seeding import mix
from ssl3d.testing.store import plain_attributes

MODELS = ((40, 56, 48), (33, 64, 40), (48, 48, 72))  # (Z,Y,X); none cubic
SCANS_PER_SUBJECT = 3


def write_many(root: str | Path, count: int) -> None:
    """A store of `count` volumes on a disk, without an index: three scans a subject, CT and MR.

    Each volume has its own zarr.json (subject, session, fingerprint, hash, spacing, statistics); its shard is a link to
    a model's, its thumbnail another name of the model's. So the metadata of a large archive are real, and its voxels,
    any of which can be read, take no room.
    """
    root = Path(root)
    create_store(root)
    models = [_model(root, number) for number in range(min(count, len(MODELS)))]
    for number in range(len(models), count):
        model, metadata = models[number % len(models)]
        folder = root / fmt.VOLUMES / volume_id(number)
        folder.mkdir()
        (folder / "c").symlink_to(Path("..", model, "c"))
        os.link(root / fmt.VOLUMES / model / THUMBNAIL_OBJECT, folder / THUMBNAIL_OBJECT)
        attributes = {**metadata["attributes"], **_own(number)}
        factors = np.random.default_rng(number).uniform(0.5, 1.5, 12).tolist()
        for kind in ("foreground_stats", "valid_stats"):
            values = zip(metadata["attributes"][kind][0].items(), factors)
            attributes[kind] = [{key: value * factor for (key, value), factor in values} | {"count": 1000 + number}]
        (folder / METADATA).write_text(json.dumps({**metadata, "attributes": attributes}))


def volume_id(number: int) -> str:
    """The id of a volume; ids sort as numbers do."""
    return f"scan_{number:07d}"


def _model(root: Path, number: int) -> tuple[str, dict]:
    """Write one model; (its id, its metadata)."""
    image = np.random.default_rng(number).integers(-1000, 1000, (1, *MODELS[number])).astype(np.int16)
    attributes = plain_attributes(image, modality=["ct" if number % 2 else "mr"], **_own(number))
    name = volume_id(number)
    write_volume(root, name, image, attributes)
    return name, json.loads((root / fmt.VOLUMES / name / METADATA).read_bytes())


def _own(number: int) -> dict:
    """What no two volumes share."""
    spacing = [1.0 + number % 5 / 4, 0.7 + number % 3 / 10, 0.8]
    return {
        "subject": f"subject_{number // SCANS_PER_SUBJECT:06d}",
        "session": f"session_{number % 2}",
        "fingerprint": f"{mix(number, 'fingerprint'):032x}",
        "perceptual_hash": f"{mix(number, 'hash') % 2**64:016x}",
        "source": f"scan_{number}.nii.gz",
        "spacing": spacing,
        "original_spacing": spacing[::-1],
    }
