"""Supervised contrast of voxels: those of one label are alike, in every view, and unlike all others.

Source: Khosla et al., "Supervised contrastive learning", NeurIPS 2020, equation 2 (the sum outside the logarithm), over
voxels of one volume as in Dey et al. (anatomix), ICLR 2025, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl3d.losses.dense import wide


@dataclass
class VoxelContrast:
    """`loss`: a scalar; `matched`: share of the voxels whose most similar one in another view has their label."""

    loss: Tensor
    matched: Tensor


def voxel_contrast(embedded: Tensor, label: Tensor, valid: Tensor, temperature: float) -> VoxelContrast:
    """Embeddings (B,V,K,F) of K voxels in V views, their `label` (B,K) and whether they are `valid` (B,K) bool.

    The anchors of a sample are its V*K valid embeddings, positives all others of the same label (in any view, itself
    excluded), and the denominator holds all others, positives too. From each anchor's cost the logarithm of its number
    of positives is taken, a constant that leaves the gradient as it is: the loss is above 0 then, and does not say
    how large the labels are. Mean over anchors, then over samples that have any; in at least float32. Labels of two
    samples are never compared.
    """
    views = embedded.shape[1]
    with torch.autocast(embedded.device.type, enabled=False):
        unit = F.normalize(wide(embedded), dim=-1).flatten(1, 2)
        cosine = unit @ unit.transpose(1, 2)
        anchor, named = valid.repeat(1, views), label.repeat(1, views)
        itself = torch.eye(cosine.shape[1], dtype=torch.bool, device=cosine.device)
        other = anchor[:, None] & ~itself
        same = named[:, :, None] == named[:, None]
        logits = torch.where(other, cosine / temperature, torch.finfo(cosine.dtype).min / 4)
        positive = same & other
        count = positive.sum(2)
        costs = torch.where(positive, logits.logsumexp(2, keepdim=True) - logits, 0).sum(2) / count.clamp(min=1)
        cost = costs - count.clamp(min=1).to(costs.dtype).log()
        counted = anchor & (count > 0)
        loss = _mean(cost, counted)
        apart = ~torch.eye(views, dtype=torch.bool, device=cosine.device).repeat_interleave(label.shape[1], 0)
        apart = apart.repeat_interleave(label.shape[1], 1) & other
        nearest = torch.where(apart, cosine.detach(), -2).argmax(2, keepdim=True)
        matched = _mean(same.gather(2, nearest)[..., 0].to(cost.dtype), counted)
    return VoxelContrast(loss, matched)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """(B,N) over `where` (B,N): mean of a sample, then of the samples that have any."""
    count = where.sum(1)
    each = torch.where(where, values, 0).sum(1) / count.clamp(min=1)
    return each.sum() / (count > 0).sum().clamp(min=1)
