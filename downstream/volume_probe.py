"""Frozen features of whole volumes: a linear probe and nearest neighbours for a target of volumes.

A volume's features are the averages of all encoder stages over a window, averaged over the windows that cover the
volume; each is encoded once for all cells and measures of an encoder. Features are standardised on the labelled
volumes; the volumes of a patient together weigh as much as he does alone. Fits are float64, deterministic, and the same
for every arm.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from downstream.context import CELL_VERSION, WORK, Cell, Context
from downstream.inference import read_image
from downstream.measure import Measure, faults, positive
from downstream.scoring import finish
from downstream.volume import VolumeTarget, mean_over_windows, volume_rows
from ssl3d.files import write_bytes
from ssl3d.models.backbone import Backbone, global_average
from ssl3d.moments import moments
from ssl3d.regions import Size3

Array = NDArray[np.float64]
TEMPERATURE = 0.07  # of the neighbours' votes (Wu et al., CVPR 2018; DINO's)


@dataclass(kw_only=True)
class FrozenVolumes(Measure):
    """What both have in common. `patch_size`: window of the encoder, voxels (D,H,W)."""

    patch_size: Size3

    BASELINE: ClassVar[str] = "a random encoder"
    TRAINS: ClassVar[bool] = False
    VOLUMES: ClassVar[bool] = True

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        return [*super().check(key), *positive(key, "patch_size", self.patch_size)]

    def sizes(self) -> dict[str, Size3]:
        """See Measure.sizes."""
        return {"patch_size": self.patch_size}

    def group(self, context: Context, cell: Cell) -> tuple[Any, ...]:
        """All cells of an encoder, of which scratch draws one for each seed."""
        return (cell.measure, cell.arm.digest, cell.seed if cell.arm.is_scratch else None)

    def predict(self, target: VolumeTarget, x: Array, y: Array, weight: Array, new: Array) -> Array:
        """Predictions (M,K) of `new` features (M,F) from labelled ones (N,F) with truths and weights (N,)."""
        raise NotImplementedError

    def run(self, context: Context, cells: Sequence[Cell]) -> None:
        """Encode every volume once, then fit and score each cell."""
        rows = {row for cell in cells for row in context.rows_of((*cell.labelled, *cell.scored))}
        features = self.all_features(context, cells[0], sorted(rows))
        target = context.volume_target
        for cell in cells:
            x = np.stack([features[row] for row in context.rows_of(cell.labelled)])
            new = np.stack([features[row] for row in context.rows_of(cell.scored)])
            found = iter(self.predict(target, x, *target.weighted(cell.labelled), new))
            pairs = [(patient, row) for patient in cell.scored for row in context.rows[patient]]
            finish(
                context, cell, [r for patient, row in pairs for r in volume_rows(context, patient, row, next(found))]
            )

    def all_features(self, context: Context, cell: Cell, rows: Sequence[int]) -> dict[int, Array]:
        """{row: its features} by the encoder of a cell.

        Kept in OUT/work until the evaluation ends: another measure of the same windows need not encode them again.
        """
        path = context.out / WORK / f"features-{self._encoder(context, cell)}.npz"
        known = {}
        if path.exists():
            with np.load(path) as kept:
                known = dict(zip(kept["rows"].tolist(), kept["features"]))
        missing = [row for row in rows if row not in known]
        if missing:
            backbone = cell.arm.backbone(cell.seed).to(context.device).eval()
            known |= {row: self.features(context, backbone, row) for row in missing}
            numbers, stacked = np.asarray(list(known)), np.stack(list(known.values()))
            buffer = io.BytesIO()
            np.savez(buffer, rows=numbers, features=stacked)
            write_bytes(path, buffer.getvalue())
        return known

    def _encoder(self, context: Context, cell: Cell) -> str:
        """A hash of all that decides a volume's features."""
        suite, arm = context.suite, cell.arm
        content: list[Any] = [CELL_VERSION, context.numerics, context.store_digest, arm.digest]
        content += [cell.seed if arm.is_scratch else None, self.patch_size]
        content += [suite.overlap, suite.normalise, suite.threads]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()

    def features(self, context: Context, backbone: Backbone, row: int) -> Array:
        """(F,) of a stored volume: the stages one after another, finest first."""

        def network(x: Tensor) -> Tensor:
            return torch.cat([global_average(stage) for stage in backbone.frozen_features(x)], dim=1)

        image = read_image(context.store, row, context.suite.normalise)
        return mean_over_windows(network, image, self.patch_size, context.suite.overlap, context.device)


@dataclass(kw_only=True)
class VolumeProbe(FrozenVolumes):
    """Logistic regression of classes, ridge regression of numbers. `l2`: weight penalty relative to the mean loss."""

    l2: float = 1e-2

    TITLE: ClassVar[str] = "Linear probe"

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        return [*super().check(key), *faults(key, [(self.l2 > 0, "l2", self.l2, "above 0")])]

    def predict(self, target: VolumeTarget, x: Array, y: Array, weight: Array, new: Array) -> Array:
        """See FrozenVolumes.predict. A class without a labelled volume has the probability 0."""
        x, new = standardised(x, weight, new)
        if not target.classes:
            model = Ridge(alpha=self.l2 * weight.sum()).fit(x, y, sample_weight=weight)
            return model.predict(new)[:, None]
        found, present = np.zeros((len(new), len(target.classes))), np.unique(y).astype(int)
        if len(present) == 1:
            found[:, present] = 1.0
            return found
        logistic = LogisticRegression(C=1 / (self.l2 * weight.sum()), max_iter=1000)
        found[:, present] = logistic.fit(x, y.astype(int), sample_weight=weight).predict_proba(new)
        return found


@dataclass(kw_only=True)
class VolumeNeighbours(FrozenVolumes):
    """The `neighbours` labelled volumes of greatest cosine similarity (all, where there are fewer) vote, or their mean.

    Votes weigh exp(similarity / 0.07): Wu et al., Unsupervised feature learning via non-parametric instance
    discrimination (CVPR 2018), section 3.4.
    """

    neighbours: int = 5

    TITLE: ClassVar[str] = "Nearest neighbours"

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        return [*super().check(key), *faults(key, [(self.neighbours > 0, "neighbours", self.neighbours, "above 0")])]

    def predict(self, target: VolumeTarget, x: Array, y: Array, weight: Array, new: Array) -> Array:
        """See FrozenVolumes.predict."""
        x, new = (unit_length(a) for a in standardised(x, weight, new))
        similarity = new @ x.T
        k = min(self.neighbours, len(x))
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        score = np.take_along_axis(similarity, nearest, axis=1)
        vote = np.exp((score - score.max(axis=1, keepdims=True)) / TEMPERATURE) * weight[nearest]
        vote /= vote.sum(axis=1, keepdims=True)
        if not target.classes:
            return (vote * y[nearest]).sum(axis=1, keepdims=True)
        return np.einsum("nk,nkc->nc", vote, np.eye(len(target.classes))[y[nearest].astype(int)])


def standardised(x: Array, weight: Array, new: Array) -> tuple[Array, Array]:
    """Labelled features (N,F) and new ones (M,F) in deviations of the labelled ones; a constant feature becomes 0."""
    mean, std = moments(x, weight)
    return (x - mean) / std, (new - mean) / std


def unit_length(x: Array) -> Array:
    """Rows (N,F) of length one; a row of zeros stays."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
