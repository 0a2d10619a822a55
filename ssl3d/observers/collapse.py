"""Whether the encoder still tells volumes apart: rank, spread and uniformity of its embeddings, and words when not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl3d.augment import centre_crop
from ssl3d.log import read_metrics
from ssl3d.training import Training

REGIONS = 64
RANK = "collapse/effective_rank"
SMALLEST, SHARE = 2.0, 0.1  # collapsed: an effective rank below either, the second of the highest so far


class Collapse:
    """Embeds the first REGIONS regions of the plan, unaugmented, and logs `collapse/*`.

    Says once that the embeddings collapsed, once that they recovered.
    """

    def __init__(self, every: int, training: Training) -> None:
        self.every = every
        before = [line[RANK] for line in read_metrics(training.metrics.path) if RANK in line]
        self.highest = max(before, default=0.0)
        self.collapsed = bool(before) and is_collapsed(before[-1], self.highest)

    def observe(self, training: Training) -> Mapping[str, float]:
        embeddings, group = [], training.objective.region.group
        size = max(group, min(training.micro_batch, REGIONS) // group * group)
        with training.data.reader(training.data.plan.with_images()) as reader:
            for first in range(0, REGIONS, size):
                batch = training.to_device(reader.read(range(first, first + size)))
                batch, _ = centre_crop(batch, training.objective.input_size)
                backbone = training.objective.exported
                embeddings.append(backbone.pool(backbone.encode(batch.image)).double().cpu())
        seen = measures(torch.cat(embeddings))
        self._tell(training, seen[RANK])
        return seen

    def _tell(self, training: Training, rank: float) -> None:
        was, self.collapsed = self.collapsed, is_collapsed(rank, self.highest)
        if self.collapsed and not was:
            training.warn(f"effective rank of the embeddings fell from {self.highest:.3g} to {rank:.3g} at "
                          f"step {training.step:,}: collapsed")  # fmt: skip
        elif was and not self.collapsed:
            training.warn(f"effective rank of the embeddings is {rank:.3g} again at step {training.step:,}")
        self.highest = max(self.highest, rank)


def is_collapsed(rank: float, highest: float) -> bool:
    """Whether an effective rank is that of embeddings that no longer tell volumes apart."""
    return rank < max(SMALLEST, SHARE * highest)


def measures(embeddings: Tensor) -> dict[str, float]:
    """Of embeddings (N,C), in float64:

    `effective_rank`: exp of the entropy of the normalised singular values of the centred embeddings (Roy & Vetterli,
    EUSIPCO 2007), 0 when all are equal; `std`: of the L2-normalised features, times sqrt(C): 1 when they point in all
    directions, 0 when in one (Chen & He, CVPR 2021, section 4.1); `uniformity`: log of the mean of exp(-2 d^2) over
    pairs on the unit sphere, 0 when all are one point (Wang & Isola, ICML 2020).
    """
    z = embeddings.double()
    values = torch.linalg.svdvals(z - z.mean(dim=0))
    noise = torch.finfo(torch.float32).eps * float(z.abs().max()) * len(z)  # what the network's rounding looks like
    values = torch.where(values > noise, values, 0.0)
    shares = values / values.sum() if values.sum() > 0 else values
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum()
    unit = F.normalize(z, dim=1)
    pairs = torch.pdist(unit).square()
    return {
        RANK: float(entropy.exp()) if values.sum() > 0 else 0.0,
        "collapse/std": float(unit.std(dim=0).mean() * z.shape[1] ** 0.5),
        "collapse/uniformity": float(pairs.mul(-2).exp().mean().log()),
    }
