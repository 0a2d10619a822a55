"""Losses over voxels that leave padding out: regression and segmentation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_of_samples(values: Tensor, where: Tensor) -> Tensor:
    """Mean of `values` (B,...) over `where` (broadcastable bool) per sample, then over samples that have any.

    0 when none has any; the gradient is exactly zero outside `where`, whatever (NaN too) stands there.
    """
    where = where.expand_as(values)
    count = where.flatten(1).sum(1)
    per_sample = torch.where(where, values, 0).flatten(1).sum(1) / count.clamp(min=1)
    return per_sample.sum() / (count > 0).sum().clamp(min=1)


def wide(x: Tensor) -> Tensor:
    """`x` in at least float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def smooth_l1(prediction: Tensor, target: Tensor, where: Tensor, beta: float) -> Tensor:
    """Huber's loss over the voxels `where` (B,1,D,H,W) of (B,C,D,H,W): quadratic below `beta`, linear above."""
    prediction = wide(prediction)
    loss = F.smooth_l1_loss(prediction, target.to(prediction.dtype), reduction="none", beta=beta)
    return mean_of_samples(loss, where)


def dice_ce(logits: Tensor, label: Tensor, where: Tensor, smooth: float = 1e-5) -> tuple[Tensor, Tensor]:
    """(soft Dice loss, cross-entropy) of logits (B,K,D,H,W) against `label` (B,1,D,H,W) over `where` (B,1,D,H,W) bool.

    Dice is the mean over all K classes, the first included, of 1 - Dice over the whole batch's voxels a sample
    (softmax probabilities); cross-entropy is the mean over voxels a sample. Both per sample, then mean.
    """
    logits = wide(logits)
    probabilities = logits.softmax(1)
    one_hot = F.one_hot(label[:, 0], logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    inside = where.to(logits.dtype)
    axes = (2, 3, 4)
    both = (probabilities * one_hot * inside).sum(axes)
    size = ((probabilities + one_hot) * inside).sum(axes)
    dice = 1 - ((2 * both + smooth) / (size + smooth)).mean(1)
    entropy = F.cross_entropy(logits, label[:, 0], reduction="none")[:, None]
    some = inside.flatten(1).any(1)
    return (dice * some).sum() / some.sum().clamp(min=1), mean_of_samples(entropy, where)
