"""The kNN probe: a voxel gets the classes of the labelled voxels whose frozen features are most alike, by cosine.

Nothing is fitted, so nothing can be tuned to hide what an encoder lacks. Features are standardised on the labelled
voxels (a stage of large numbers would else decide alone) and scaled to length 1. Votes are weighted by
exp((cosine - 1) / temperature): Wu et al. (Instance discrimination, CVPR 2018, section 3.4), and DINO's evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from downstream.context import Context
from downstream.frozen_features import FrozenFeatures, Voxels, relative
from downstream.inference import predict
from downstream.measure import faults
from ssl3d.models.backbone import Backbone
from ssl3d.models.heads import upsampled_at

CHUNK = 2**24  # float32 values of features, or of similarities, held at once (64 MiB)


@dataclass
class Bank:
    """Labelled voxels to compare with: `features` (M,F) standardised by `mean`, `std` (F,) and of length 1.

    `classes` (M,); `places` (M,3), relative to their volumes' foreground boxes. `std` is infinite where it was 0.
    """

    features: Tensor
    classes: Tensor
    places: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, voxels: Voxels) -> Bank:
        """The bank of some labelled voxels, in float32 (statistics in float64)."""
        x = torch.from_numpy(voxels.features)
        std, mean = torch.std_mean(x.double(), dim=0, correction=0)
        mean, std = mean.float(), torch.where(std > 1e-8, std, torch.inf).float()
        unit = F.normalize((x - mean) / std, dim=1)
        return cls(unit, torch.from_numpy(voxels.classes), torch.from_numpy(voxels.places), mean, std)

    def to(self, device: torch.device) -> Bank:
        """All tensors on `device`."""
        tensors = (self.features, self.classes, self.places, self.mean, self.std)
        return Bank(*(t.to(device) for t in tensors))


def votes(
    bank: Bank,
    features: Tensor,
    places: Tensor,
    n_classes: int,
    k: int,
    temperature: float,
    position_weight: float = 0.0,
) -> Tensor:
    """Class shares (N,K) of raw features (N,F) at `places` (N,3): weighted votes of the k nearest labelled voxels.

    Nearness is the cosine less `position_weight` times the squared distance of the places. Computed in float32.
    """
    unit = F.normalize((features.float() - bank.mean) / bank.std, dim=1)
    out = torch.zeros(len(unit), n_classes, device=unit.device)
    step = max(1, CHUNK // len(bank.classes))
    for i in range(0, len(unit), step):
        near = unit[i : i + step] @ bank.features.T
        if position_weight:
            near -= position_weight * torch.cdist(places[i : i + step], bank.places).square()
        best, which = near.topk(min(k, near.shape[1]), dim=1)
        weight = ((best - best[:, :1]) / temperature).exp()  # relative to the nearest: the same shares, no underflow
        out[i : i + step].scatter_add_(1, bank.classes[which], weight / weight.sum(dim=1, keepdim=True))
    return out


@dataclass(kw_only=True)
class Knn(FrozenFeatures):
    """k nearest labelled voxels by the cosine of frozen features; `temperature` of their votes.

    The work of a volume grows with its voxels times the labelled ones: `voxels_per_class` sets what it costs.
    """

    voxels_per_class: int = 500
    k: int = 20
    temperature: float = 0.07

    TITLE: ClassVar[str] = "kNN probe"

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        own = [
            (self.k > 0, "k", self.k, "above 0"),
            (self.temperature > 0, "temperature", self.temperature, "above 0"),
        ]
        return [*super().check(key), *faults(key, own)]

    def prior(self) -> float:
        """Weight of the distance of places against the cosine."""
        return 0.0

    def learn(self, voxels: Voxels, n_classes: int) -> Bank:
        """See FrozenFeatures.learn."""
        return Bank.of(voxels)

    def probabilities(
        self, context: Context, backbone: Backbone, learned: Sequence[Bank], image: Tensor, row: int
    ) -> NDArray[np.float32]:
        """See FrozenFeatures.probabilities: the shares of votes of overlapping windows are averaged."""
        n_classes, channels = len(context.classes) + 1, image.shape[1]
        banks = [bank.to(context.device) for bank in learned]

        def network(x: Tensor) -> Tensor:
            found = [self._window(backbone, banks, part[None, :channels], part[channels:], n_classes) for part in x]
            return torch.stack(found)

        placed = torch.cat((image, _places(context, row, image)), dim=1)  # each window knows where it lies
        shares = predict(network, placed, self.patch_size, context.suite.overlap, context.device)
        return shares.unflatten(0, (len(banks), n_classes)).numpy()

    def _window(self, backbone: Backbone, banks: Sequence[Bank], x: Tensor, places: Tensor, n_classes: int) -> Tensor:
        """Shares (banks * K, D,H,W) of one window (1,C,D,H,W) whose voxels lie at `places` (3,D,H,W)."""
        size = x.shape[2:]
        stages = backbone.frozen_features(x)
        voxels = np.stack(np.unravel_index(np.arange(size.numel()), size), axis=1)
        at = places.flatten(1).T
        out = torch.empty(len(banks), len(voxels), n_classes, device=x.device)
        step = max(1, CHUNK // sum(backbone.frozen_channels))
        for i in range(0, len(voxels), step):
            part = slice(i, i + step)
            features = torch.cat([upsampled_at(stage, voxels[part], size) for stage in stages], dim=1)
            for bank, own in zip(banks, out):
                own[part] = votes(bank, features, at[part], n_classes, self.k, self.temperature, self.prior())
        return out.movedim(2, 1).flatten(0, 1).unflatten(1, size)


def _places(context: Context, row: int, image: Tensor) -> Tensor:
    """(1,3,Z,Y,X): where each voxel of a whole volume lies in its foreground box (frozen_features.relative)."""
    size = image.shape[2:]
    longest = np.arange(max(size))
    lines = relative(context, row, np.stack([longest] * 3, axis=1))
    axes = [torch.from_numpy(lines[: size[a], a].copy()) for a in range(3)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
