"""Assignments to prototypes: the cross-entropy of predicting balanced codes (ssl3d.losses.sinkhorn).

Source: Caron et al., "Unsupervised learning of visual features by contrasting cluster assignments" (SwAV), NeurIPS
2020. Scores are cosines with the prototypes, in at least float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_EPSILON = 0.03  # a smaller one asks for nothing but the nearest prototype


def assignment_cost(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Scores (...,K) and the codes (...,K) they should predict -> (...): cross-entropy."""
    return -(codes * (scores / temperature).log_softmax(-1)).sum(-1)


def mean_of_costs(costs: Tensor, where: Tensor) -> Tensor:
    """(B,S) and (B,S) bool -> the mean over samples of each one's mean over `where`; a sample without any costs 0.

    All samples count, so that the mean over ranks is that over all their samples.
    """
    return (torch.where(where, costs, 0).sum(1) / where.sum(1).clamp(min=1)).mean()


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """(B,S,K) and (B,S) bool -> (B,K): mean over the rows `where`; 0 where there is none."""
    weight = where[..., None].to(values.dtype)
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1)
