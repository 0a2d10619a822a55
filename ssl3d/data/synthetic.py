"""`data.store=synthetic`: thousands of volumes that no one has scanned, made where they are read, from no data at all.

A volume is a scene and a look of it (`ssl3d.synth`), both known at every position: only the box that is asked for is
made, and overlapping boxes agree voxel by voxel. Everything is a pure function of the options and the volume's number,
so that workers, ranks and a resumed run read the same volumes, and nothing has to be kept.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ssl3d.data import format as fmt
from ssl3d.data.cache import VoxelCache
from ssl3d.data.format import ChannelStats, LabelInfo, VolumeAttributes
from ssl3d.data.index import SCHEMA
from ssl3d.data.lru import LRU
from ssl3d.data.source import Source
from ssl3d.data.store import open_store
from ssl3d.data.write import channel_stats
from ssl3d.regions import Size3
from ssl3d.seeding import mix, numpy_generator
from ssl3d.synth import BRIGHTEST, Look, Scene
from ssl3d.synth.scene import SIDES, voxel_edges

NAME = "synthetic"
VERSION = 1  # raised when the same number gives other voxels: a run must not be resumed on those
SHAPES = (80, 160)  # of a volume, and
RADII = (0.03, 0.3)  # of its edge: so many and so small that a crop of a third of the edge shows several
LABELS = SHAPES[1] + SIDES
SCALE = BRIGHTEST / 32000  # value of one stored step
BLOCK = 32  # edge of the blocks that noise is drawn in
PROBED = 24  # positions an axis by which a volume's statistics are estimated
DRAWN = 8  # volumes whose scenes and looks are kept
DESCRIBED = 8192  # volumes whose statistics are kept


@dataclass(frozen=True)
class Options:
    """How many `volumes` there are, the voxels of their edge (`size`), their `channels`, and a `seed`."""

    volumes: int = 5000
    size: int = 160
    channels: int = 1
    seed: int = 0

    @classmethod
    def parse(cls, path: str) -> Options:
        """`synthetic`, or `synthetic:volumes=100,size=96`. Raises ValueError naming data.store and the option."""
        known = [f.name for f in fields(cls)]
        values: dict[str, int] = {}
        for part in filter(None, path.partition(":")[2].split(",")):
            key, _, value = part.partition("=")
            if key not in known or not value.isdecimal() or (key != "seed" and int(value) < 1):
                raise ValueError(
                    f"data.store is '{path}': '{part}' is no option of synthetic volumes; write whole numbers, as in "
                    f"{NAME}:volumes=5000,size=160,channels=1,seed=0"
                )
            values[key] = int(value)
        return cls(**values)

    @property
    def digest(self) -> str:
        """What tells these volumes from those of other options, but for how many there are."""
        return f"{mix(self.seed, NAME, VERSION, self.size, self.channels):016x}"


class SyntheticStore(Source):
    """Volumes of `Options`, a subject each, of modality `other`, with a label for every shape.

    Stored values are int16, value = SCALE * stored in [0, BRIGHTEST]. `perceptual_hash` is empty: they look like no
    patient, and the leak guard compares them by name alone.
    """

    def __init__(self, path: str = NAME) -> None:
        self.options = Options.parse(path)
        self.spacing = np.stack([_spacing(self.options.seed, row) for row in range(self.options.volumes)])
        super().__init__(path, _table(self.options, self.spacing), {"other": {}})
        self._scenes: LRU[int, Scene] = LRU(DRAWN)
        self._looks: LRU[tuple[int, int], tuple[Look, float]] = LRU(DRAWN * self.options.channels)
        self._stats: LRU[int, tuple[list[ChannelStats], LabelInfo]] = LRU(DESCRIBED)

    def cell(self, name: str, row: int) -> Any:
        """One entry of the table; statistics are estimated when they are asked for."""
        if name in ("valid_stats", "foreground_stats"):
            return [dict(vars(s)) for s in self._described(row)[0]]
        return super().cell(name, row)

    def attributes(self, row: int) -> VolumeAttributes:
        """All attributes of a volume."""
        stats = self._described(row)[0]
        cells = {f.name: self.cell(f.name, row) for f in fields(VolumeAttributes) if f.name in fmt.INDEX_COLUMNS}
        affine = np.reshape(cells["affine"], (4, 4)).tolist()
        cells |= {"affine": affine, "foreground_stats": stats, "valid_stats": stats}
        cells["foreground_box"] = np.reshape(cells["foreground_box"], (2, 3)).tolist()
        original = {"original_affine": affine, "original_shape": list(self.shape(row)[1:]),
                    "original_orientation": "SPL"}  # fmt: skip
        return VolumeAttributes(**(cells | original))

    def label_info(self, row: int) -> LabelInfo:
        """A class for every shape; coordinates on a lattice."""
        return self._described(row)[1]

    def shape(self, row: int, kind: str = fmt.VOLUMES) -> tuple[int, ...]:
        """(C,Z,Y,X) of an array."""
        return (self.options.channels if kind == fmt.VOLUMES else 1, *[self.options.size] * 3)

    def air(self, row: int) -> np.ndarray:
        """(C,) int16: what voxels outside the volume are set to."""
        return np.array([round(s.low / SCALE) for s in self._described(row)[0]], dtype=np.int16)

    def read(
        self,
        row: int,
        start: Size3,
        size: Size3,
        kind: str = fmt.VOLUMES,
        out: np.ndarray | None = None,
        channel: int | None = None,
        cache: VoxelCache | None = None,
    ) -> np.ndarray:
        """See Source.read. Nothing is decoded, so that `cache` is left alone. Raises FileNotFoundError for `valid`."""
        if kind not in (fmt.VOLUMES, fmt.LABELS):
            raise FileNotFoundError(f"volume {self.volume_id(row)} of {self.path} has no {kind}")
        image = kind == fmt.VOLUMES
        channels = range(self.shape(row, kind)[0]) if channel is None else range(channel, channel + 1)
        if out is None:
            out = np.empty((len(channels), *size), dtype=np.int16 if image else np.uint8)
        low = [max(0, s) for s in start]
        high = [min(self.options.size, s + d) for s, d in zip(start, size)]
        inside = tuple(slice(lo - s, hi - s) for lo, hi, s in zip(low, high, start))
        if any(hi - lo < d for lo, hi, d in zip(low, high, size)):
            out[...] = self.air(row)[list(channels), None, None, None] if image else 0
        if all(hi > lo for lo, hi in zip(low, high)):
            box = out[(slice(None), *inside)]
            if image:
                self._paint(box, row, channels, low, high)
            else:
                box[0] = self._scene(row).label(self._axes(row, low, high)).numpy()
        return out

    def _paint(self, out: np.ndarray, row: int, channels: Sequence[int], low: list[int], high: list[int]) -> None:
        """Fill `out` (C,D,H,W) int16 with the voxels [low, high); a voxel around them is made too, for the blur."""
        low, high = [n - 1 for n in low], [n + 1 for n in high]
        axes = self._axes(row, low, high)
        label = self._scene(row).label(axes)
        for target, channel in zip(out, channels):
            look, blur = self._look(row, channel)
            white = torch.from_numpy(self._noise(row, channel, low, high))
            value = _blurred(look.paint(label, axes, white), blur)
            target[...] = (value / SCALE).round_().numpy()

    def _scene(self, row: int) -> Scene:
        return self._scenes.get(row, lambda: self._draw_scene(row))

    def _draw_scene(self, row: int) -> Scene:
        rng = numpy_generator(self.options.seed, "scene", row)
        return Scene.draw(rng, self.spacing[row] * self.options.size, SHAPES, RADII)

    def _look(self, row: int, channel: int) -> tuple[Look, float]:
        """What a channel looks like, and the share of a voxel that each of its neighbours on an axis gets."""
        return self._looks.get((row, channel), lambda: self._draw_look(row, channel))

    def _draw_look(self, row: int, channel: int) -> tuple[Look, float]:
        rng = numpy_generator(self.options.seed, "look", row, channel)
        blur = rng.uniform(0, 0.25)
        return Look.draw(rng, LABELS, self.spacing[row] * self.options.size), blur

    def _axes(self, row: int, low: Sequence[int], high: Sequence[int]) -> list[np.ndarray]:
        """Coordinates (mm) of the centres of voxels [low, high) along z, y, x."""
        return [(np.arange(lo, hi) + 0.5) * mm for lo, hi, mm in zip(low, high, self.spacing[row])]

    def _noise(self, row: int, channel: int, low: list[int], high: list[int]) -> np.ndarray:
        """Standard normal noise of the voxels [low, high): drawn by blocks, so that a voxel's is its own."""
        out = np.empty([hi - lo for lo, hi in zip(low, high)], dtype=np.float32)
        for block in itertools.product(*(range(lo // BLOCK, (hi - 1) // BLOCK + 1) for lo, hi in zip(low, high))):
            rng = numpy_generator(self.options.seed, "noise", row, channel, *block)
            values = rng.standard_normal((BLOCK,) * 3, dtype=np.float32)
            here, there = [], []
            for b, lo, hi in zip(block, low, high):
                first, last = max(lo, b * BLOCK), min(hi, (b + 1) * BLOCK)
                here.append(slice(first - lo, last - lo))
                there.append(slice(first - b * BLOCK, last - b * BLOCK))
            out[tuple(here)] = values[tuple(there)]
        return out

    def _described(self, row: int) -> tuple[list[ChannelStats], LabelInfo]:
        return self._stats.get(row, lambda: self._describe(row))

    def _describe(self, row: int) -> tuple[list[ChannelStats], LabelInfo]:
        """Statistics of every channel, and the classes, by a lattice of PROBED positions an axis (without the blur)."""
        places = np.unique(np.linspace(0, self.options.size - 1, PROBED).round().astype(int))
        axes = [(places + 0.5) * mm for mm in self.spacing[row]]
        label = self._scene(row).label(axes)
        stats = []
        for channel in range(self.options.channels):
            rng = numpy_generator(self.options.seed, "probe", row, channel)
            white = torch.from_numpy(rng.standard_normal(tuple(label.shape), dtype=np.float32))
            value = self._look(row, channel)[0].paint(label, axes, white)
            stats.append(channel_stats(value.double().numpy()))
        found = {int(k): places[np.argwhere(label.numpy() == k)] for k in np.unique(label.numpy()) if k > 0}
        spread = {k: points[:: -(-len(points) // fmt.MAX_LABEL_COORDINATES)].tolist() for k, points in found.items()}
        return stats, LabelInfo(_classes(), None, spread)


def open_source(path: str | Path) -> Source:
    """What a recipe's data.store names: `synthetic` with its options, or a store. Raises as SyntheticStore, Store."""
    return SyntheticStore(str(path)) if is_synthetic(path) else open_store(path)


def is_synthetic(path: str | Path) -> bool:
    """Whether data.store asks for synthetic volumes, with right options or wrong ones."""
    return str(path).partition(":")[0] == NAME


def _classes() -> dict[int, str]:
    return {0: "background"} | {k: f"shape {k}" for k in range(1, LABELS)}


def _spacing(seed: int, row: int) -> np.ndarray:
    """(3,) mm z, y, x: 1 mm, in half of the volumes with thicker slices along one axis."""
    return voxel_edges(numpy_generator(seed, "spacing", row))


def _blurred(x: Tensor, share: float) -> Tensor:
    """(D+2,H+2,W+2) -> (D,H,W): each voxel gives `share` to either neighbour on each axis."""
    for axis in range(3):
        n = x.shape[axis] - 2
        sides = x.narrow(axis, 0, n) + x.narrow(axis, 2, n)
        x = x.narrow(axis, 1, n) * (1 - 2 * share) + sides * share
    return x


def _table(options: Options, spacing: np.ndarray) -> pa.Table:
    """The table of all volumes, on the store's grid (z to Superior, y to Posterior, x to Left)."""
    n, c, size = options.volumes, options.channels, options.size
    ids = [f"{NAME}-{options.digest}-{row:06d}" for row in range(n)]
    affine = np.zeros((n, 4, 4))
    affine[:, 0, 2], affine[:, 1, 1], affine[:, 2, 0], affine[:, 3, 3] = (
        -spacing[:, 2],
        -spacing[:, 1],
        spacing[:, 0],
        1,
    )
    same: Mapping[str, Any] = {
        "session": "", "modality": ["other"] * c, "channels": c, "shape": [size] * 3, "scale": [SCALE] * c,
        "offset": [0.0] * c, "foreground_box": [0, 0, 0, size, size, size], "foreground_stats": "[]",
        "valid_stats": "[]", "flags": [], "perceptual_hash": "", "has_label": True, "has_valid": False,
        "saturated_share": 0.0, "has_label_original": False, "label_classes": json.dumps(_classes()), "targets": "{}",
        "source": NAME, "bytes": 0,
    }  # fmt: skip
    columns: dict[str, list[Any]] = {key: [value] * n for key, value in same.items()}
    columns |= {"id": ids, "subject": ids, "fingerprint": ids, "affine": affine.reshape(n, 16).tolist()}
    columns |= {"spacing": spacing.tolist(), "original_spacing": spacing[:, ::-1].tolist()}
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)
