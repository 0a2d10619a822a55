"""Reconstruction losses over a chosen part of the voxels."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mse(prediction: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Mean squared error over the voxels `where` (B,1,D,H,W) bool of (B,C,D,H,W): mean per sample, then over samples.

    Samples without such voxels are left out of the mean; 0 when none has any. Computed in at least float32. The
    gradient is exactly zero outside `where`, whatever (NaN too) stands there.
    """
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    difference = torch.where(where, prediction.to(dtype) - target.to(dtype), 0)
    count = where.flatten(1).sum(1) * prediction.shape[1]
    per_sample = difference.square().flatten(1).sum(1) / count.clamp(min=1)
    return per_sample.sum() / (count > 0).sum().clamp(min=1)
