"""Pooled features with mean 0 and deviation 1, so that what a loss compares is more than one point."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl3d.losses.gather import gather

VARIANCE_FLOOR = 1e-12  # features that are the same everywhere stay 0


def standardised(pooled: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Each feature with mean 0 and deviation 1 over `dims`: the crops of a volume, or the scans and views of a step.

    Networks with instance norm pool almost the same features from any crop (cosines of 0.999): the gradient of a cosine
    vanishes there, SIGReg cannot part what is one point, and bfloat16 rounds the difference away.
    """
    centred = pooled - pooled.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + VARIANCE_FLOOR).sqrt()


def standardised_rows(pooled: Tensor, where: Tensor | None = None) -> Tensor:
    """(...,F) -> the same, each feature with mean 0 and deviation 1 over the rows of all ranks, those `where` (...).

    What the batch norm of the papers' projectors does at its entrance, whatever the number of ranks.
    """
    rows = pooled.flatten(0, -2)
    everyone = gather(rows.contiguous())
    counted = torch.ones_like(rows[:, :1]) if where is None else where.flatten()[:, None].to(rows.dtype)
    weight = gather(counted.contiguous())
    weight = weight / weight.sum().clamp(min=1)
    mean = (everyone * weight).sum(0)
    variance = ((everyone - mean).square() * weight).sum(0)
    return ((rows - mean) / (variance + VARIANCE_FLOOR).sqrt()).view_as(pooled)
