"""What every measure of a frozen encoder shares: labelled voxels, their features, each volume encoded once for all.

Frozen features (all scales of a convolutional encoder, four blocks of a transformer: Backbone.frozen_features) are
upsampled to full resolution. A subclass learns from the features of labelled voxels and turns those of a whole volume
into class probabilities; no network is trained, so the score shows what the encoder already tells apart, and a random
encoder is its baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downstream.context import Cell, Context
from downstream.inference import pad_to, read_classes, read_image, read_whole, window_starts
from downstream.measure import Measure, faults, positive
from downstream.scoring import finish, keep_picture, score_case
from downstream.sparse import draw_slices, slice_mask
from ssl3d.data.format import VALID
from ssl3d.models.backbone import Backbone
from ssl3d.models.heads import upsampled_at
from ssl3d.regions import Size3
from ssl3d.seeding import numpy_generator

MAX_OUTPUTS = 2**28  # float32 values of one volume held at once (1 GiB); more cells are predicted in several passes


@dataclass
class Voxels:
    """Labelled voxels: `features` (N,F); `classes` (N,), 0 is background; `places` (N,3): see `relative`."""

    features: NDArray[np.float32]
    classes: NDArray[np.int64]
    places: NDArray[np.float32]


@dataclass(kw_only=True)
class FrozenFeatures(Measure):
    """A classifier of voxels on frozen features. `patch_size`: window of the encoder, voxels (D,H,W).

    `voxels_per_class`: training voxels sampled a class, background too, over all labelled patients. `slices`: so many
    annotated slices a labelled volume, the rest unknown (downstream.sparse); null: all.
    """

    patch_size: Size3
    voxels_per_class: int = 2000
    slices: int | None = None

    BASELINE: ClassVar[str] = "a random encoder"
    TRAINS: ClassVar[bool] = False
    PICTURES: ClassVar[bool] = True

    def learn(self, voxels: Voxels, n_classes: int) -> Any:
        """A classifier, of whatever type, from labelled voxels; `n_classes` with background."""
        raise NotImplementedError

    def probabilities(
        self, context: Context, backbone: Backbone, learned: Sequence[Any], image: Tensor, row: int
    ) -> NDArray[np.float32]:
        """Class probabilities (classifiers, K, Z, Y, X) of a normalised volume (1,C,Z,Y,X) of a store row."""
        raise NotImplementedError

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        own = [
            (self.voxels_per_class > 0, "voxels_per_class", self.voxels_per_class, "above 0"),
            (self.slices is None or self.slices > 0, "slices", self.slices, "null or above 0"),
        ]
        return [*super().check(key), *positive(key, "patch_size", self.patch_size), *faults(key, own)]

    def title(self) -> str:
        """See Measure.title."""
        return self.TITLE + ("" if self.slices is None else f", {self.slices} slice{'s' * (self.slices > 1)} a volume")

    def sizes(self) -> dict[str, Size3]:
        """See Measure.sizes."""
        return {"patch_size": self.patch_size}

    def group(self, context: Context, cell: Cell) -> tuple[Any, ...]:
        """All cells of an encoder that score the same patients; scratch draws an encoder for each seed."""
        return (cell.measure, cell.arm.digest, cell.split, cell.seed if cell.arm.is_scratch else None)

    def run(self, context: Context, cells: Sequence[Cell]) -> None:
        """Learn and score cells that share an encoder, and store them."""
        backbone = cells[0].arm.backbone(cells[0].seed).to(context.device).eval()
        n_classes = len(context.classes) + 1
        learned = [self.learn(voxels, n_classes) for voxels in training_voxels(context, self, backbone, cells)]
        rows: list[list[dict[str, object]]] = [[] for _ in cells]
        scored = cells[0].scored
        assert all(cell.scored == scored for cell in cells)
        for patient in scored:
            for row in context.rows[patient]:
                image = read_image(context.store, row, context.suite.normalise)
                together = max(1, MAX_OUTPUTS // (image[0, 0].numel() * n_classes))
                for i in range(0, len(cells), together):
                    maps = self.probabilities(context, backbone, learned[i : i + together], image, row)
                    for cell, own, probabilities in zip(cells[i:], rows[i:], maps):
                        keep_picture(context, cell, row, probabilities)
                        own += score_case(context, patient, row, probabilities)
        for cell, own in zip(cells, rows):
            finish(context, cell, own)


def training_voxels(
    context: Context, measure: FrozenFeatures, backbone: Backbone, cells: Sequence[Cell]
) -> list[Voxels]:
    """For each cell, voxels sampled from its labelled patients. Each labelled volume is encoded once for all cells."""
    gathered: list[list[Voxels]] = [[] for _ in cells]
    for row in sorted({row for cell in cells for row in context.rows_of(cell.labelled)}):
        using = [i for i, cell in enumerate(cells) if row in context.rows_of(cell.labelled)]
        stored = class_indices(context, row)
        targets, drawn = [], []
        for i in using:
            target = stored
            if measure.slices is not None:
                axis, slices = draw_slices(context, row, measure.slices, cells[i].seed)
                target = np.where(slice_mask(stored.shape, axis, slices), stored, -1)
            quota = math.ceil(measure.voxels_per_class / len(context.rows_of(cells[i].labelled)))
            drawn.append(sample_voxels(target, quota, context.suite.seed, cells[i].seed, row))
            targets.append(target)
        voxels = np.concatenate(drawn)
        image = read_image(context.store, row, context.suite.normalise)
        window, overlap = measure.patch_size, context.suite.overlap
        features = voxel_features(backbone, image, voxels, window, overlap, context.device)
        ends = np.cumsum([len(part) for part in drawn])[:-1]
        for i, x, at, target in zip(using, np.split(features, ends), drawn, targets):
            gathered[i].append(Voxels(x, target[tuple(at.T)], relative(context, row, at)))
    return [
        Voxels(
            np.concatenate([p.features for p in parts]),
            np.concatenate([p.classes for p in parts]),
            np.concatenate([p.places for p in parts]),
        )
        for parts in gathered
    ]


def relative(context: Context, row: int, voxels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Where voxels (N,3) of a volume lie in its foreground box: 0 at its first face of an axis, 1 at its last."""
    low, high = np.asarray(context.store.cell("foreground_box", row), dtype=np.float64).reshape(2, 3)
    return ((voxels + 0.5 - low) / np.maximum(high - low, 1)).astype(np.float32)


def class_indices(context: Context, row: int) -> NDArray[np.int64]:
    """Stored labels (Z,Y,X) as indices of the suite's classes, 0 background, -1 where nothing may be learnt."""
    store = context.store
    index = read_classes(store, row, context.classes, context.ignore)
    if store.cell("has_valid", row):
        index[read_whole(store, row, VALID)[0] == 0] = -1
    return index


def sample_voxels(target: NDArray[np.int64], per_class: int, *keys: int) -> NDArray[np.int64]:
    """(N,3) voxels (z,y,x): at most `per_class` of every class present, drawn without replacement from `keys`."""
    generator = numpy_generator(keys[0], "probe voxels", *keys[1:])
    chosen = []
    for value in range(int(target.max()) + 1):
        candidates = np.flatnonzero(target == value)
        if len(candidates) > per_class:
            candidates = np.sort(generator.choice(candidates, per_class, replace=False))
        chosen.append(candidates)
    flat = np.concatenate([np.empty(0, dtype=np.int64), *chosen])
    return np.stack(np.unravel_index(flat, target.shape), axis=1)


@torch.no_grad()
def voxel_features(
    backbone: Backbone,
    image: Tensor,
    voxels: NDArray[np.int64],
    window: Size3,
    overlap: float,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """Features (N, sum of frozen_channels) of `voxels` (N,3) of a normalised volume (1,C,Z,Y,X).

    Each voxel is seen in the inference window whose centre lies nearest, and interpolated as heads.upsample does.
    """
    padded, before = pad_to(image, window)
    centres, starts = [], []
    for axis in range(3):
        first = window_starts(padded.shape[2 + axis], window[axis], overlap)
        distance = np.abs((voxels[:, axis] + before[axis])[:, None] + 0.5 - (first + window[axis] / 2))
        starts.append(first[distance.argmin(axis=1)])
        centres.append(voxels[:, axis] + before[axis] - starts[axis])
    start, within = np.stack(starts, axis=1), np.stack(centres, axis=1)
    out = np.empty((len(voxels), sum(backbone.frozen_channels)), dtype=np.float32)
    for corner in np.unique(start, axis=0):
        inside = (start == corner).all(axis=1)
        z, y, x = (slice(int(c), int(c) + w) for c, w in zip(corner, window))
        stages = backbone.frozen_features(padded[:, :, z, y, x].to(device))
        parts = [upsampled_at(stage, within[inside], window).cpu().numpy() for stage in stages]
        out[inside] = np.concatenate(parts, axis=1)
    return out
