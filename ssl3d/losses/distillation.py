"""Cross-entropy of a student with a teacher's targets: between views of a sample (DINO), and at hidden tokens (iBOT).

Sources: Caron et al. (DINO), ICCV 2021, equation 3; Zhou et al. (iBOT), ICLR 2022, equation 2; weights of tokens as in
Oquab et al. (DINOv2), arXiv 2304.07193. lightly's DINOLoss and IBOTPatchLoss compute the same from logits; they take no
ready targets (Sinkhorn's), and move a centre during the forward pass on their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl3d.losses.dense import mean_of_samples, wide


def view_cross_entropy(student: Tensor, targets: Tensor, temperature: float, seen: Tensor) -> Tensor:
    """Logits (S,B,K) of S views and targets (T,B,K) of the first T of them -> mean over samples of the mean over pairs.

    A pair is a target and a student's view that is not the same one. `seen` (S,B) bool: views that show anything; a
    pair needs both of its views.
    """
    log_shares = (wide(student) / temperature).log_softmax(-1)
    cost = -torch.einsum("tbk,sbk->bts", targets.to(log_shares.dtype), log_shares)
    other = ~torch.eye(len(targets), len(student), dtype=torch.bool, device=cost.device)
    shown = seen.T
    return mean_of_samples(cost, other & shown[:, : len(targets), None] & shown[:, None])


def token_cross_entropy(student: Tensor, targets: Tensor, temperature: float, weight: Tensor, views: int) -> Tensor:
    """Logits (M,K) and targets (M,K) of M hidden tokens -> sum of their costs by `weight` (M,), over all `views`.

    With weights of 1 / (hidden tokens of the view) it is the mean over views of the mean over a view's hidden tokens,
    0 for a view without any.
    """
    log_shares = (wide(student) / temperature).log_softmax(-1)
    cost = -(targets.to(log_shares.dtype) * log_shares).sum(-1)
    return (cost * weight.to(cost.dtype)).sum() / views
