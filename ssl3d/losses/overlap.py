"""VoCo's losses: predict how much a crop overlaps each base crop from the cosines of their embeddings.

Source: Wu et al., "VoCo: a simple-yet-effective volume contrastive learning framework", CVPR 2024, section 3.3 (v1),
and "Large-scale 3D medical image pre-training with geometric context priors", arXiv 2410.09890 (v2). All in at least
float32. `predicted`, `overlap`: (B, crops, K) in [0, 1].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-6
Plateau = Literal["straight-through", "published"]


def predicted_overlap(crops: Tensor, bases: Tensor, plateau: Plateau) -> Tensor:
    """Embeddings (B,n,F) and (B,K,F) -> (B,n,K): cosines, negative ones cut to 0.

    Published code loses the gradient with the cut: a network whose cosines are all negative predicts 0 everywhere and
    stays there. `straight-through` cuts the value alike and lets the gradient of the cosine pass.
    """
    cosine = torch.einsum("bnf,bkf->bnk", F.normalize(crops, dim=-1), F.normalize(bases, dim=-1))
    cut = cosine.clamp(min=0)
    return cut if plateau == "published" else cosine + (cut - cosine).detach()


def positive_term(predicted: Tensor, overlap: Tensor) -> Tensor:
    """(B,): sum over overlapping bases of -y log(1 - |y - p|), relative to the sum of y."""
    distance = (overlap - predicted).abs()
    return (-overlap * (1 - distance + EPSILON).log()).flatten(1).sum(1) / (overlap.flatten(1).sum(1) + EPSILON)


def negative_term(predicted: Tensor, overlap: Tensor, version: Literal["v1", "v2"]) -> Tensor:
    """(B,): mean over bases that do not overlap of p^2 (v1) or -log(1 - p) (v2)."""
    apart = overlap == 0
    cost = predicted.square() if version == "v1" else -(1 - predicted + EPSILON).clamp(min=EPSILON).log()
    return torch.where(apart, cost, 0).flatten(1).sum(1) / (apart.flatten(1).sum(1) + EPSILON)


def spread_of_bases(bases: Tensor) -> Tensor:
    """(B,K,F) -> (B,): mean over pairs i < j of the squared positive cosine; gradient through the first of each."""
    unit = F.normalize(bases, dim=-1)
    cosine = torch.einsum("bif,bjf->bij", unit, unit.detach()).clamp(min=0)
    i, j = torch.triu_indices(bases.shape[1], bases.shape[1], offset=1, device=bases.device)
    return cosine[:, i, j].square().mean(1)
