"""Match two graphs of embeddings softly: a relaxed quadratic assignment and its Hamming distance to the identity.

Sources: Nguyen et al., "LVM-Med: learning large-scale self-supervised vision models for medical imaging via
second-order graph matching", NeurIPS 2023 (vertex and edge affinities, Hamming loss); Gold and Rangarajan, "A graduated
assignment algorithm for graph matching", PAMI 1996 (the relaxation: doubly stochastic matrices instead of permutations,
each round a Sinkhorn normalisation of the assignment's gradient). Published are permutations from a discrete solver and
a gradient estimated by perturbing it; the relaxation has a gradient of its own. All in at least float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 1e-2  # an edge far shorter than this has no direction to compare: rounding alone would give it one


def global_affinity(first: Tensor, second: Tensor) -> Tensor:
    """Embeddings (N,F) of the two graphs' vertices -> (N,N) cosines."""
    return F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T


def local_affinity(first: Tensor, second: Tensor, first_seen: Tensor, second_seen: Tensor) -> Tensor:
    """Embeddings (N,K,F) of K cells a vertex -> (N,N): mean cosine of each cell to the one most like it, both ways.

    Cells that are not `seen` (N,K) bool are left out; 0 where a vertex has none.
    """
    cosine = torch.einsum("ikf,alf->iakl", F.normalize(first, dim=-1), F.normalize(second, dim=-1))
    here, there = first_seen[:, None, :, None], second_seen[None, :, None, :]

    def mean_best(axis: int, wanted: Tensor, offered: Tensor) -> Tensor:
        best = torch.where(offered, cosine, -1).amax(axis)
        counted = (wanted & offered.any(axis, keepdim=True)).squeeze(axis)
        return torch.where(counted, best, 0).sum(-1) / counted.sum(-1).clamp(min=1)

    return (mean_best(3, here, there) + mean_best(2, there, here)) / 2


def nearest_neighbours(embedded: Tensor, neighbours: int) -> Tensor:
    """(N,F) -> (N,N) bool: edges between vertices one of which is among the other's `neighbours` nearest by cosine."""
    cosine = global_affinity(embedded.detach(), embedded.detach()).fill_diagonal_(-2)
    nearest = cosine.topk(min(neighbours, len(embedded) - 1), dim=1).indices
    near = torch.zeros_like(cosine, dtype=torch.bool).scatter(1, nearest, True)
    return near | near.T


def edge_directions(embedded: Tensor, neighbours: int) -> Tensor:
    """(N,F) -> (N,N,F): unit differences of the vertices of every edge, zero where there is none."""
    unit = F.normalize(embedded, dim=-1)
    difference = unit[:, None] - unit
    length = (difference.square().sum(-1, keepdim=True) + SHORT**2).sqrt()
    return difference / length * nearest_neighbours(embedded, neighbours)[..., None]


def edge_support(matching: Tensor, first: Tensor, second: Tensor, neighbours: int) -> Tensor:
    """(N,N): how well the edges at i and at a agree under a soft matching (N,N), for each pair of vertices.

    The sum over j and b of matching[j, b] * cosine of the edges ij (of `first` (N,N,F)) and ab (of `second`), divided
    by the `neighbours` that a vertex has at least. Without the N^4 affinities: they are products of directions.
    """
    carried = torch.einsum("abf,jb->jaf", second, matching)
    return torch.einsum("ijf,jaf->ia", first, carried) / min(neighbours, len(matching) - 1)


def assignment_score(
    matching: Tensor, vertex: Tensor, first: Tensor, second: Tensor, neighbours: int, edge_weight: float
) -> Tensor:
    """The quadratic assignment's objective of a matching (N,N): matched vertices and, once each, matched edges."""
    support = edge_support(matching, first, second, neighbours)
    return (matching * (vertex + edge_weight / 2 * support)).sum()


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """(N,N) -> (N,N) positive: rows sum to 1 and, the more iterations, columns too. In logarithms, so never 0 / 0."""
    for _ in range(iterations):
        logits = logits - logits.logsumexp(0, keepdim=True)
        logits = logits - logits.logsumexp(1, keepdim=True)
    return logits.exp()


def soft_matching(
    vertex: Tensor,
    first: Tensor,
    second: Tensor,
    neighbours: int,
    edge_weight: float,
    temperature: float,
    rounds: int,
    iterations: int,
) -> Tensor:
    """Vertex affinities (N,N) and edge directions (N,N,F) of two graphs -> (N,N), nearly doubly stochastic.

    A first matching by vertices alone, then `rounds` in which edges have their say under the matching so far. At a
    `temperature` near 0 it is nearly a permutation: a local optimum of `assignment_score`, not always the best one.
    """
    matching = sinkhorn(vertex / temperature, iterations)
    for _ in range(rounds):
        support = edge_support(matching, first, second, neighbours)
        matching = sinkhorn((vertex + edge_weight * support) / temperature, iterations)
    return matching


def hamming(matching: Tensor) -> Tensor:
    """Distance of a matching (N,N) to the identity, 0 to 1: the share of a vertex's weight that is matched wrongly."""
    eye = torch.eye(len(matching), dtype=matching.dtype, device=matching.device)
    return (matching * (1 - eye) + eye * (1 - matching)).sum() / (2 * len(matching))
