"""The on-disk contract of a store: names, layout, attributes, index. Imports nothing of ours.

One zarr v3 group a data set. `volumes/<id>` (C,Z,Y,X) int16; optional `labels/<id>` (1,Z,Y,X) uint8|uint16,
`valid/<id>` (1,Z,Y,X) uint8 0|1, `labels_original/<id>` (1,Z,Y,X) on the original grid, reoriented to the store's axes.
z grows to Superior, y to Posterior, x to the patient's Left. A volume exists once `volumes/<id>/zarr.json` does:
chunk objects are written first, labels and valid before the volume, and that file last. The array attributes are the
truth; `index.parquet` repeats them, a row a volume, and can be rebuilt.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FORMAT_VERSION = 1
FORMAT_KEY = "ssl3d_format"  # root attribute holding FORMAT_VERSION

VOLUMES, LABELS, VALID, LABELS_ORIGINAL = "volumes", "labels", "valid", "labels_original"
KINDS = (VOLUMES, LABELS, VALID, LABELS_ORIGINAL)
INDEX_FILE = "index.parquet"
REFUSED_FILE = "refused.csv"
DUPLICATES_FILE = "duplicates.csv"  # pairs of volumes that look alike
THUMBNAILS_FILE = "thumbnails.npy"  # (n, 32, 32, 32) float16, rows as in the index
LOCK_FILE = ".lock"
WRITER_FILE = ".writer.json"  # who is converting into the store now; gone when he has ended well
DAMAGED_FILE = "damaged.json"  # {volume id: [object keys]} found by inspect --verify, until they are made again

CHUNK = 32  # voxels along each axis; chunks are (1, 32, 32, 32)
SHARD_BYTES = 1 << 30  # a larger volume is split into several shards along z
# Bytes, not bits, are shuffled: undoing that takes a sixth of the time, and was two thirds of decoding. lz4hc makes up
# for the size, at twice lz4's time to write. Readers take any blosc codec, so that older volumes stay as they are.
BLOSC: dict[str, Any] = {"cname": "lz4hc", "clevel": 2, "shuffle": "shuffle"}

MODALITIES = ("ct", "mr", "pet", "other")
CT_WINDOW = (-1000.0, 1000.0)  # HU; normalisation "auto" clips CT to it
FEW_SLICES = "few_slices"  # a volume with this flag is not sampled unless asked for
MAX_LABEL_COORDINATES = 1000  # sampled voxel coordinates kept per class

ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def shard_shape(shape: Sequence[int], itemsize: int = 2) -> tuple[int, int, int, int]:
    """(C,Z,Y,X) of a shard: the whole volume rounded up to chunks, split along z above SHARD_BYTES."""
    c, z, y, x = (int(n) for n in shape)
    up = [math.ceil(n / CHUNK) * CHUNK for n in (z, y, x)]
    slab = c * CHUNK * up[1] * up[2] * itemsize
    up[0] = min(up[0], max(1, SHARD_BYTES // slab) * CHUNK)
    return (c, up[0], up[1], up[2])


@dataclass
class ChannelStats:
    """Intensities in physical units (HU for CT). `clipped_*` after clipping to [low, high]: the CT window for CT,
    the 0.5 and 99.5 percentiles of the valid voxels otherwise."""

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float
    percentile_00_5: float
    percentile_50: float
    percentile_99_5: float
    low: float
    high: float
    clipped_mean: float
    clipped_std: float


@dataclass
class LabelInfo:
    """Attributes of a label array. `classes` {value: name}; `coordinates` {value: [[z,y,x], ...]} sampled voxels."""

    classes: dict[int, str]
    ignore: int | None = None
    coordinates: dict[int, list[list[int]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "classes": {str(k): v for k, v in self.classes.items()},
            "ignore": self.ignore,
            "coordinates": {str(k): v for k, v in self.coordinates.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabelInfo:
        return cls(
            classes={int(k): v for k, v in data["classes"].items()},
            ignore=data.get("ignore"),
            coordinates={int(k): v for k, v in data.get("coordinates", {}).items()},
        )


@dataclass
class VolumeAttributes:
    """Attributes of `volumes/<id>`; per-channel entries are lists of length C.

    `spacing` [z,y,x] mm; `affine` 4x4, stored voxel (z,y,x,1) -> world mm RAS+; value = scale*stored + offset.
    `original_*` are in the order of the source file (x,y,z for NIfTI). `foreground_box` [[z0,y0,x0],[z1,y1,x1]) voxels.
    `fingerprint` blake2b of the canonical source voxels; `digest` {object key: blake2b} of each shard object, and
    `stored_bytes` what they take together.
    `quantisation` per channel {"max_error": physical units, "saturated_share": share of voxels}.
    """

    spacing: list[float]
    affine: list[list[float]]
    scale: list[float]
    offset: list[float]
    modality: list[str]
    original_affine: list[list[float]]
    original_shape: list[int]
    original_spacing: list[float]
    original_orientation: str
    foreground_box: list[list[int]]
    foreground_stats: list[ChannelStats]
    valid_stats: list[ChannelStats]
    subject: str
    session: str
    fingerprint: str
    source: str
    perceptual_hash: str = ""
    targets: dict[str, float] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    quantisation: list[dict[str, float]] = field(default_factory=list)
    digest: dict[str, str] = field(default_factory=dict)
    stored_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VolumeAttributes:
        """Raises ValueError naming the attribute that is missing; unknown attributes are ignored (newer writers)."""
        values: dict[str, Any] = {}
        for f in dataclasses.fields(cls):
            if f.name in data:
                values[f.name] = data[f.name]
            elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise ValueError(f"volume attribute '{f.name}' is missing: the volume was not written by ssl3d convert")
        for name in ("foreground_stats", "valid_stats"):
            values[name] = [ChannelStats(**s) for s in values[name]]
        return cls(**values)


# Columns of index.parquet. Everything a sampler and a loader need, so that opening a store reads this one file.
INDEX_COLUMNS: dict[str, str] = {
    "id": "str",
    "subject": "str",
    "session": "str",
    "modality": "list[str]",
    "channels": "int",
    "shape": "list[int]",  # z, y, x
    "spacing": "list[float]",
    "affine": "list[float]",  # 16 numbers, row-major
    "foreground_box": "list[int]",  # z0, y0, x0, z1, y1, x1
    "scale": "list[float]",
    "offset": "list[float]",
    "foreground_stats": "json",  # list of ChannelStats
    "valid_stats": "json",
    "flags": "list[str]",
    "fingerprint": "str",
    "perceptual_hash": "str",
    "has_label": "bool",
    "has_valid": "bool",
    "original_spacing": "list[float]",  # mm, in the order of the source file
    "saturated_share": "float",  # of the valid voxels, of the worst channel
    "has_label_original": "bool",
    "label_classes": "json",  # {value: name} or {}
    "targets": "json",
    "source": "str",
    "bytes": "int",
}


def index_row(
    volume_id: str,
    shape: Sequence[int],
    attributes: VolumeAttributes,
    label: LabelInfo | None,
    has_valid: bool,
    has_label_original: bool,
    n_bytes: int,
) -> dict[str, Any]:
    """The index row of a volume of `shape` (C,Z,Y,X)."""
    a = attributes
    return {
        "id": volume_id,
        "subject": a.subject,
        "session": a.session,
        "modality": list(a.modality),
        "channels": int(shape[0]),
        "shape": [int(n) for n in shape[1:]],
        "spacing": list(a.spacing),
        "affine": [float(v) for row in a.affine for v in row],
        "foreground_box": [int(v) for row in a.foreground_box for v in row],
        "scale": list(a.scale),
        "offset": list(a.offset),
        "foreground_stats": [dict(vars(s)) for s in a.foreground_stats],
        "valid_stats": [dict(vars(s)) for s in a.valid_stats],
        "flags": list(a.flags),
        "fingerprint": a.fingerprint,
        "perceptual_hash": a.perceptual_hash,
        "has_label": label is not None,
        "has_valid": has_valid,
        "original_spacing": [float(s) for s in a.original_spacing],
        "saturated_share": max((float(q["saturated_share"]) for q in a.quantisation), default=0.0),
        "has_label_original": has_label_original,
        "label_classes": {} if label is None else {str(k): v for k, v in label.classes.items()},
        "targets": dict(a.targets),
        "source": a.source,
        "bytes": int(n_bytes),
    }
