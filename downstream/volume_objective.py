"""Supervised objectives of whole volumes: crops of a volume, pooled features, a class or a number."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.augment import Compose
from ssl3d.models.backbone import Backbone
from ssl3d.regions import RegionBatch, RegionSpec, Size3, size3
from ssl3d.tasks.task import Objective

Pooling = Literal["mean", "attention"]
ATTENTION_WIDTH = 64


class GatedAttention(nn.Module):
    """Tokens (B,N,F) -> their weighted mean (B,F): weights softmax over n of w^T (tanh(V h_n) * sigmoid(U h_n)).

    Ilse et al., Attention-based deep multiple instance learning (ICML 2018), equation 9. `w` starts at 0: at first it
    is the plain mean.
    """

    def __init__(self, features: int, width: int = ATTENTION_WIDTH) -> None:
        super().__init__()
        self.content = nn.Linear(features, width)
        self.gate = nn.Linear(features, width)
        self.score = nn.Linear(width, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        score = self.score(torch.tanh(self.content(tokens)) * torch.sigmoid(self.gate(tokens)))
        return (tokens * score.softmax(dim=1)).sum(dim=1)


class PooledHead(nn.Module):
    """Encoder features of all scales -> (B, outputs) in float32.

    The scales are averaged onto the coarsest grid, where each token holds all of them, a layer norm each (a random
    encoder's scales differ in size by orders of magnitude); the tokens are pooled by their mean or by gated attention;
    a linear layer follows.
    """

    def __init__(self, backbone: Backbone, outputs: int, pooling: Pooling) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in backbone.channels)
        width = sum(backbone.channels)
        self.pool = GatedAttention(width) if pooling == "attention" else None
        self.linear = nn.Linear(width, outputs)

    def forward(self, features: list[Tensor]) -> Tensor:
        """[(B, channels[i], D/s_i, H/s_i, W/s_i)], finest first -> (B, outputs)."""
        grid = size3(features[-1].shape[2:])
        with torch.autocast(features[0].device.type, enabled=False):
            scales = [
                norm(F.adaptive_avg_pool3d(_wide(scale), grid).flatten(2).transpose(1, 2))
                for norm, scale in zip(self.norms, features)
            ]
            tokens = torch.cat(scales, dim=2)
            return self.linear(tokens.mean(dim=1) if self.pool is None else self.pool(tokens))


class VolumeObjective(Objective):
    """A backbone's encoder and a pooled head, trained on random crops of volumes for one column of `batch.target`.

    `patch_size`: voxels (D,H,W) of a crop, which may be as large as the volumes; every crop of a volume has the
    volume's target. Volumes without a target (NaN) enter no loss. Raises ValueError naming what is out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        outputs: int,
        patch_size: Size3,
        column: int,
        pooling: Pooling,
        augment: Compose | None,
    ) -> None:
        super().__init__()
        if column < 0:
            raise ValueError(f"column is {column}; it must be 0 or more")
        backbone.check_size(patch_size)
        self.backbone, self.column = backbone, column
        self.head = PooledHead(backbone, outputs, pooling)
        self.augment = augment or Compose()
        self.input_size = patch_size
        self.region = RegionSpec(self.augment.reach(patch_size))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss (B,) of outputs (B,K) for the stored targets (B,), all known."""
        raise NotImplementedError

    def predict(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) normalised -> probabilities (B,K), or values (B,1) in units of the target."""
        raise NotImplementedError

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch with targets -> loss, the mean over the samples; raises ValueError when it carries none."""
        if batch.target is None or self.column >= batch.target.shape[1]:
            raise ValueError(f"the batch has no target number {self.column}: the store's volumes have no such target")
        target = batch.target[:, self.column]
        batch, _ = self.augment(batch, self.input_size)
        output = self.head(self.backbone.encode(batch.image))
        known = torch.isfinite(target)
        with torch.autocast(output.device.type, enabled=False):
            each = self.loss(output[known], target[known].to(output.dtype))
            # the sum over nothing keeps the graph: such a step changes no weight
            return {"loss": each.sum() / known.sum().clamp(min=1) + 0 * output.sum()}


class VolumeClassification(VolumeObjective):
    """Cross-entropy of the classes stored as the numbers `codes`.

    `shares`: of the classes among the labelled patients. `balanced`: each class weighs the same, by weights
    1 / (K share); the predicted probabilities are then brought back to the shares (Saerens et al., Neural Computation
    14, 2002, equation 2.4): they are calibrated for patients like the labelled ones.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_size: Size3,
        column: int,
        codes: list[float],
        shares: list[float],
        balanced: bool = True,
        pooling: Pooling = "mean",
        augment: Compose | None = None,
    ) -> None:
        super().__init__(backbone, len(codes), patch_size, column, pooling, augment)
        if len(set(codes)) < 2 or len(shares) != len(codes) or min(shares) <= 0:
            raise ValueError(f"codes {codes} and shares {shares} must be as many, at least 2, the shares above 0")
        self.register_buffer("codes", torch.tensor(codes), persistent=False)
        self.register_buffer("shares", torch.tensor(shares) / math.fsum(shares), persistent=False)
        self.balanced = balanced

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """See VolumeObjective.loss."""
        codes, shares = self.codes, self.shares
        assert isinstance(codes, Tensor) and isinstance(shares, Tensor)
        index = (target[:, None] - codes).abs().argmin(dim=1)
        weight = 1 / (len(codes) * shares[index]) if self.balanced else torch.ones_like(target)
        return F.cross_entropy(output, index, reduction="none") * weight

    def predict(self, x: Tensor) -> Tensor:
        """See VolumeObjective.predict."""
        assert isinstance(self.shares, Tensor)
        logits = self.head(self.backbone.encode(x))
        return (logits + self.shares.log() if self.balanced else logits).softmax(dim=1)


class VolumeRegression(VolumeObjective):
    """Smooth L1 of the target in deviations: (value - `mean`) / `std`, those of the labelled patients."""

    def __init__(
        self,
        backbone: Backbone,
        patch_size: Size3,
        column: int,
        mean: float,
        std: float,
        pooling: Pooling = "mean",
        augment: Compose | None = None,
    ) -> None:
        super().__init__(backbone, 1, patch_size, column, pooling, augment)
        if std <= 0:
            raise ValueError(f"std is {std}; it must be above 0")
        self.mean, self.std = mean, std

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """See VolumeObjective.loss."""
        return F.smooth_l1_loss(output[:, 0], (target - self.mean) / self.std, reduction="none")

    def predict(self, x: Tensor) -> Tensor:
        """See VolumeObjective.predict."""
        return self.head(self.backbone.encode(x)) * self.std + self.mean


def _wide(x: Tensor) -> Tensor:
    """At least float32, so that averages lose nothing."""
    return x if x.dtype == torch.float64 else x.float()
