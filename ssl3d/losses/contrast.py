"""Contrast with weighted positives and negatives: of positions in a body between volumes, and of places in one volume.

Source: Chaitanya et al., "Contrastive learning of global and local features for medical image segmentation with limited
annotations", NeurIPS 2020: the global loss (GR, GD-, GD) and the local one (LR, LD). Every sum of exponentials is taken
through its logarithm, so that any temperature is safe.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl3d.losses.gather import gather, rank, world_size

GlobalPairs = Literal["GR", "GD-", "GD"]


def log_negatives(similarity: Tensor, weight: Tensor) -> Tensor:
    """(...,N,M) similarities and weights in [0, inf) -> (...,N): log of the sum of weight * exp(similarity).

    Where all weights are 0 it is so low that no positive pair costs anything, and no gradient passes.
    """
    nothing = torch.finfo(similarity.dtype).min / 4
    some = weight > 0
    logs = torch.where(some, weight, 1).to(similarity.dtype).log()
    return torch.where(some, similarity + logs, nothing).logsumexp(-1)


def pair_costs(similarity: Tensor, negatives: Tensor) -> Tensor:
    """-log(e^s / (e^s + e^negatives)) of every pair (...,N,M), with `log_negatives` (...,N) of its first member."""
    return -F.logsigmoid(similarity - negatives[..., None])


def contrast(similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """(...,N,M) -> (...,N): the mean cost of an anchor's positive pairs, by their weight; 0 without any."""
    positive = positive.to(similarity.dtype)
    costs = pair_costs(similarity, log_negatives(similarity, negative))
    total = positive.sum(-1)
    return (costs * positive).sum(-1) / torch.where(total > 0, total, 1)


def alike(first: Tensor, second: Tensor, sigma: float) -> Tensor:
    """Positions (N,A) and (M,A) -> (N,M): exp(-distance^2 / (2 sigma^2)), 1 where they coincide."""
    return (-(first[:, None] - second).square().sum(-1) / (2 * sigma**2)).exp()


def same_part(first: Tensor, second: Tensor, parts: int) -> Tensor:
    """Positions (N,) and (M,) in [0, 1] -> (N,M) 0 or 1: whether both lie in one of `parts` equal parts."""
    a, b = ((x * parts).floor().clamp(0, parts - 1) for x in (first, second))
    return (a[:, None] == b).to(first.dtype)


def position_contrast(
    embedded: Tensor, z: Tensor, pairs: GlobalPairs, temperature: float, sigma: float, parts: int | None
) -> dict[str, Tensor]:
    """Embeddings (B,V,F) of V views of B samples and their positions z (B,V) in [0, 1], of all ranks -> loss and more.

    How much two positions are the same is `alike`, or with `parts` `same_part`. What is the same is no negative: its
    weight is 1 less that share. Positive pairs are the views of a sample, and for GD also, by that share, views of
    other samples (with `parts`, as published, only the same view of them). GR: every other sample is a negative.
    Returns `loss` (mean over this rank's anchors), `negatives` (mean weight of an anchor's) and `similarity` (mean
    cosine of a sample's views).
    """
    batch, views = z.shape
    unit = F.normalize(embedded, dim=-1)
    everyone, positions = gather(unit.contiguous()), gather(z.contiguous()).to(unit.dtype)
    cosine = unit.flatten(0, 1) @ everyone.flatten(0, 1).T
    mine = torch.arange(batch * views, device=z.device) + rank() * batch * views
    theirs = torch.arange(len(positions) * views, device=z.device)
    itself = mine[:, None] == theirs
    own = mine[:, None] // views == theirs // views
    here, there = z.flatten().to(unit.dtype), positions.flatten()
    same = same_part(here, there, parts) if parts else alike(here[:, None], there[:, None], sigma)
    same = torch.where(own, 1, same)
    negative = (~own).to(unit.dtype) if pairs == "GR" else 1 - same
    positive = (own & ~itself).to(unit.dtype)
    if pairs == "GD":
        across = same * ~own
        if parts:
            across = across * (mine[:, None] % views == theirs % views)
        positive = positive + across
    return {
        "loss": contrast(cosine / temperature, positive, negative).mean(),
        "negatives": negative.detach().sum(1).mean(),
        "similarity": (cosine.detach() * (own & ~itself)).sum(1).mean() / max(1, views - 1),
    }


def place_contrast(
    embedded: Tensor,
    matched: Tensor,
    place: Tensor,
    temperature: float,
    nearest: int = 0,
    min_distance: float = 0.0,
    across: Tensor | None = None,
) -> Tensor:
    """Embeddings (B,2,K,F) of K places seen in two views -> mean over samples of the mean over their matched places.

    `matched` (B,K) bool: places that both views show; others are neither anchors nor negatives. `place` (B,K,3) mm.
    A place's positive is itself in the other view; its negatives are the places of both views of its own sample at
    least `min_distance` mm away, or of these the `nearest`. `across` (B,2K, all ranks' B*2K): weights of further
    positives in other samples, views before places; zero within a sample.
    """
    _, views, count, _ = embedded.shape
    unit = F.normalize(embedded, dim=-1).flatten(1, 2)
    similarity = unit @ unit.transpose(1, 2) / temperature
    eye = torch.eye(count, dtype=torch.bool, device=place.device)
    apart = (place[:, :, None] - place[:, None]).square().sum(-1).sqrt()
    negative = matched[:, None, :] & ~eye & (apart >= min_distance)
    if 0 < nearest < count:
        near = torch.where(negative, apart, torch.inf).topk(nearest, dim=2, largest=False).indices
        negative &= torch.zeros_like(negative).scatter(2, near, True)
    negatives = log_negatives(similarity, negative.repeat(1, views, views))
    other_view = ~torch.eye(views, dtype=torch.bool, device=place.device)
    positive = (other_view[:, None, :, None] & eye[None, :, None, :]).reshape(views * count, views * count)
    weight = (positive & matched.repeat(1, views)[:, None]).to(unit.dtype)
    cost, total = (pair_costs(similarity, negatives) * weight).sum(-1), weight.sum(-1)
    if across is not None:
        others = gather(unit.contiguous()).flatten(0, 1)
        further = pair_costs(unit.flatten(0, 1) @ others.T / temperature, negatives.flatten()).view(across.shape)
        cost, total = cost + (further * across).sum(-1), total + across.sum(-1)
    anchors = matched.repeat(1, views)
    per_place = torch.where(anchors, cost / torch.where(total > 0, total, 1), 0)
    return (per_place.sum(1) / anchors.sum(1).clamp(min=1)).mean()


def other_samples(batch: int, device: torch.device) -> Tensor:
    """(B, all ranks' B) bool: False where a sample of this rank meets itself."""
    mine = torch.arange(batch, device=device) + rank() * batch
    return mine[:, None] != torch.arange(batch * world_size(), device=device)
