"""Targets for a student from a teacher's logits over prototypes, kept from collapsing: Sinkhorn-Knopp or a centre.

Sources: Caron et al., "Unsupervised learning of visual features by contrasting cluster assignments" (SwAV), NeurIPS
2020, section 3.1 (Sinkhorn-Knopp); Caron et al., "Emerging properties in self-supervised vision transformers" (DINO),
ICCV 2021, section 3.1 (centre); Oquab et al. (DINOv2), arXiv 2304.07193, section 4 (Sinkhorn-Knopp for both heads).
Published code calls collectives whether or not there is a process group, and dies on one process; ours does not.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ssl3d.losses.dense import wide
from ssl3d.losses.gather import gather, sum_over_ranks

TargetKind = Literal["sinkhorn", "centre"]


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float | Tensor, iterations: int = 3, weight: Tensor | None = None) -> Tensor:
    """This rank's logits (N,K) -> (N,K): each sample's shares of the K prototypes, which sum to 1.

    Over the samples of all ranks (N may differ between them, and be 0) every prototype gets about as much as any other.
    Sums of exponentials are taken through their logarithm, so that any temperature is safe.
    `weight` (N,), 0 or 1: samples of weight 0 take no part, and get shares of 0.
    """
    log = wide(logits) / temperature
    counted = torch.ones(len(log), dtype=torch.bool, device=log.device) if weight is None else weight > 0
    for _ in range(iterations):
        log = (log - _log_sum(log.masked_fill(~counted[:, None], -torch.inf))).log_softmax(1)
    return log.exp() * counted[:, None]


def _log_sum(log: Tensor) -> Tensor:
    """(N,K) of this rank -> (K,): the logarithm of the sum of exponentials over the samples of all ranks."""
    own = log.amax(0) if len(log) else log.new_full(log.shape[1:], -torch.inf)
    top = gather(own[None]).amax(0).nan_to_num(neginf=0.0)
    tiny = torch.finfo(log.dtype).tiny
    return sum_over_ranks((log - top).exp().sum(0)).clamp(min=tiny).log() + top


class Targets(nn.Module):
    """Turns a teacher's logits into targets by `kind`; a centre moves after the step, by what the step has seen.

    `prototypes`: K. `momentum`: of the centre. A forward pass changes nothing that another one sees, so that pictures,
    held-out losses and several micro-batches a step do not either; `after_step` moves the centre, on all ranks alike.
    Raises ValueError naming `centre_momentum` when out of range.
    """

    centre: Tensor

    def __init__(self, prototypes: int, kind: TargetKind, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"centre_momentum={momentum}: must lie between 0 and 1")
        self.kind, self.momentum = kind, momentum
        self.register_buffer("centre", torch.zeros(prototypes if kind == "centre" else 0))
        # No buffer: DDP gives every rank the first one's buffers before each pass, and this is a rank's own.
        self._seen: Tensor | None = None

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float | Tensor, weight: Tensor | None = None) -> Tensor:
        """(N,K) -> (N,K) targets that sum to 1. `weight` (N,), 0 or 1: rows of weight 0 change no other row."""
        logits = wide(logits)
        if self.kind == "sinkhorn":
            return sinkhorn(logits, temperature, weight=weight)
        if self.training:
            counted = logits.new_ones(len(logits)) if weight is None else weight.to(logits.dtype)
            seen = torch.cat([(logits * counted[:, None]).sum(0), counted.sum().view(1)])
            self._seen = seen if self._seen is None else self._seen + seen
        return ((logits - self.centre.to(logits.dtype)) / temperature).softmax(-1)

    @torch.no_grad()
    def after_step(self) -> None:
        """The centre moves towards the mean of all ranks' rows since the last step; it stays where there were none."""
        if self.kind == "sinkhorn" or self._seen is None:
            return
        *_, count = seen = sum_over_ranks(self._seen)
        self._seen = None
        mean = seen[:-1] / count.clamp(min=1)
        moved = self.centre.lerp(mean.to(self.centre.dtype), 1 - self.momentum)
        self.centre.copy_(torch.where(count > 0, moved, self.centre))
