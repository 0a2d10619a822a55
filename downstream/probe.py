"""The frozen-feature linear probe: multinomial logistic regression on all encoder stages, voxel by voxel.

Features of every stage are upsampled to full resolution, standardised on the training voxels, and mapped to classes by
one linear layer. No network is trained, so the probe shows what the encoder already tells apart; a random encoder is
its baseline. The fitted layer is folded into 1x1x1 convolutions (heads.StageHead) and run over whole test volumes, all
cells of an arm in one pass of the encoder. Classes are sampled equally often and keep these priors: on validation
patients, shifting the intercepts to the true ones won at 4 labelled patients what it lost at 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from downstream.arms import Arm
from downstream.context import Cell, Context
from downstream.inference import pad_to, predict, read_image, read_whole, window_starts
from downstream.measure import Measure, faults, positive
from downstream.scoring import finish, keep_picture, score_case
from ssl3d.data.format import LABELS, VALID
from ssl3d.models.backbone import Backbone
from ssl3d.models.heads import StageHead, upsampled_at
from ssl3d.regions import Size3
from ssl3d.seeding import numpy_generator

MAX_OUTPUTS = 2**28  # float32 logits of one volume held at once (1 GiB); more cells are predicted in several passes
IMPOSSIBLE = -1e4  # logit of a class no training voxel has


@dataclass
class LinearClassifier:
    """Fitted on standardised features, in the units of the raw ones: logits = weight (K, F) @ feature + bias (K,)."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


@dataclass(kw_only=True)
class Probe(Measure):
    """Logistic regression on frozen features. `patch_size`: window of the encoder, voxels (D,H,W).

    `voxels_per_class`: training voxels sampled a class, over all labelled patients; `l2`: weight penalty relative to
    the mean loss, the same for every arm.
    """

    patch_size: Size3
    voxels_per_class: int = 2000
    l2: float = 1e-3

    TITLE: ClassVar[str] = "Linear probe"
    BASELINE: ClassVar[str] = "a random encoder"
    TRAINS: ClassVar[bool] = False
    PICTURES: ClassVar[bool] = True

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        own = [
            (self.voxels_per_class > 0, "voxels_per_class", self.voxels_per_class, "above 0"),
            (self.l2 > 0, "l2", self.l2, "above 0"),
        ]
        return [*super().check(key), *positive(key, "patch_size", self.patch_size), *faults(key, own)]

    def sizes(self) -> dict[str, Size3]:
        """See Measure.sizes."""
        return {"patch_size": self.patch_size}

    def group(self, context: Context, cell: Cell) -> tuple[Any, ...]:
        """All cells of an encoder, of which scratch draws one for each seed."""
        return (cell.measure, cell.arm.digest, cell.seed if cell.arm.is_scratch else None)

    def run(self, context: Context, cells: Sequence[Cell]) -> None:
        """Fit and score cells that share an encoder."""
        run_probe(context, self, cells[0].arm, cells[0].seed, cells)


def run_probe(context: Context, measure: Probe, arm: Arm, encoder_seed: int, cells: Sequence[Cell]) -> None:
    """Fit and score probe cells that share an encoder (scratch: the random one of `encoder_seed`), and store them."""
    backbone = arm.backbone(encoder_seed).to(context.device).eval()
    backbone.check_size(measure.patch_size)
    training = _training_voxels(context, measure, backbone, cells)
    classifiers = [fit(x, y, len(context.classes) + 1, measure.l2) for x, y in training]
    rows: list[list[dict[str, object]]] = [[] for _ in cells]
    scored = cells[0].scored
    assert all(cell.scored == scored for cell in cells)
    for patient in scored:
        for row in context.rows[patient]:
            image = read_image(context.store, row, context.suite.normalise)
            outputs = image[0, 0].numel() * (len(context.classes) + 1)
            together = max(1, MAX_OUTPUTS // outputs)
            for i in range(0, len(cells), together):
                maps = _predict(context, measure, backbone, classifiers[i : i + together], image)
                for cell, own, probabilities in zip(cells[i:], rows[i:], maps):
                    keep_picture(context, cell, row, probabilities)
                    own += score_case(context, patient, row, probabilities)
    for cell, own in zip(cells, rows):
        finish(context, cell, own)


def _predict(
    context: Context, measure: Probe, backbone: Backbone, classifiers: Sequence[LinearClassifier], image: Tensor
) -> NDArray[np.float32]:
    """Class probabilities (cells, K, Z, Y, X) of a normalised volume (1,C,Z,Y,X)."""
    head = stack(classifiers, backbone.channels).to(context.device)

    def network(x: Tensor) -> Tensor:
        return head(backbone.encode(x), x.shape[2:])

    logits = predict(network, image, measure.patch_size, context.suite.overlap, context.device)
    return logits.unflatten(0, (len(classifiers), -1)).softmax(dim=1).numpy()


def _training_voxels(
    context: Context, measure: Probe, backbone: Backbone, cells: Sequence[Cell]
) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """For each cell, features (N, F) and class indices (N,) of voxels sampled from its labelled patients.

    Each labelled volume is encoded once for all cells.
    """
    gathered: list[list[tuple[NDArray[np.float32], NDArray[np.int64]]]] = [[] for _ in cells]
    for row in sorted({row for cell in cells for row in context.rows_of(cell.labelled)}):
        using = [i for i, cell in enumerate(cells) if row in context.rows_of(cell.labelled)]
        target = class_indices(context, row)
        drawn = []
        for i in using:
            quota = math.ceil(measure.voxels_per_class / len(context.rows_of(cells[i].labelled)))
            drawn.append(sample_voxels(target, quota, context.suite.seed, cells[i].seed, row))
        voxels = np.concatenate(drawn)
        image = read_image(context.store, row, context.suite.normalise)
        window, overlap = measure.patch_size, context.suite.overlap
        features = voxel_features(backbone, image, voxels, window, overlap, context.device)
        ends = np.cumsum([len(part) for part in drawn])[:-1]
        for i, x, at in zip(using, np.split(features, ends), drawn):
            gathered[i].append((x, target[tuple(at.T)]))
    return [(np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])) for parts in gathered]


def class_indices(context: Context, row: int) -> NDArray[np.int64]:
    """Stored labels (Z,Y,X) as indices of the suite's classes, 0 background, -1 where nothing may be learnt."""
    store = context.store
    label = read_whole(store, row, LABELS)[0]
    index = np.zeros(label.shape, dtype=np.int64)
    for i, value in enumerate(context.classes, start=1):
        index[label == value] = i
    if context.ignore is not None:
        index[label == context.ignore] = -1
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
    """Features (N, sum of channels) of `voxels` (N,3) of a normalised volume (1,C,Z,Y,X), stages finest first.

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
    out = np.empty((len(voxels), sum(backbone.channels)), dtype=np.float32)
    for corner in np.unique(start, axis=0):
        inside = (start == corner).all(axis=1)
        z, y, x = (slice(int(c), int(c) + w) for c, w in zip(corner, window))
        stages = backbone.encode(padded[:, :, z, y, x].to(device))
        parts = [upsampled_at(stage, within[inside], window).cpu().numpy() for stage in stages]
        out[inside] = np.concatenate(parts, axis=1)
    return out


def fit(x: NDArray[np.float32], y: NDArray[np.int64], n_classes: int, l2: float) -> LinearClassifier:
    """Multinomial logistic regression: mean cross-entropy + l2/2 |weight|^2 on standardised features, by L-BFGS.

    Deterministic; float64. A class without a training voxel is never predicted.
    """
    present = np.unique(y)
    mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    std = np.where(std > 1e-8, std, np.inf)  # a constant feature says nothing: weight 0
    weight = np.zeros((n_classes, x.shape[1]))
    bias = np.full(n_classes, IMPOSSIBLE)
    if len(present) == 1:
        bias[present] = 0.0
        return LinearClassifier(weight, bias)
    model = LogisticRegression(C=1 / (l2 * len(x)), max_iter=1000, tol=1e-4)
    model.fit((x - mean) / std, y)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(present) == 2:  # sklearn keeps the second class's row only
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
    weight[present] = coefficients / std
    bias[present] = intercepts - weight[present] @ mean
    return LinearClassifier(weight, bias)


def stack(classifiers: Sequence[LinearClassifier], channels: Sequence[int]) -> StageHead:
    """One head (cells * K channels) that computes all classifiers at once."""
    head = StageHead(channels, sum(len(c.bias) for c in classifiers))
    weight = torch.from_numpy(np.concatenate([c.weight for c in classifiers])).float()
    parts = weight.split(list(channels), dim=1)
    state = {f"projections.{i}.weight": part[:, :, None, None, None] for i, part in enumerate(parts)}
    state["projections.0.bias"] = torch.from_numpy(np.concatenate([c.bias for c in classifiers])).float()
    head.load_state_dict(state)
    return head.requires_grad_(False).eval()
