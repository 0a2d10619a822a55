"""Pooled features with mean 0 and deviation 1, so that what a loss compares is more than one point."""

from __future__ import annotations

from torch import Tensor

VARIANCE_FLOOR = 1e-12  # features that are the same everywhere stay 0


def standardised(pooled: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Each feature with mean 0 and deviation 1 over `dims`: the crops of a volume, or the scans and views of a step.

    Networks with instance norm pool almost the same features from any crop (cosines of 0.999): the gradient of a cosine
    vanishes there, SIGReg cannot part what is one point, and bfloat16 rounds the difference away.
    """
    centred = pooled - pooled.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + VARIANCE_FLOOR).sqrt()
