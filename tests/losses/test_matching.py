"""Soft second-order matching: against every permutation of small graphs, a slow twin, and its invariances."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from ssl3d.losses.matching import (
    assignment_score,
    edge_directions,
    edge_support,
    global_affinity,
    hamming,
    local_affinity,
    nearest_neighbours,
    sinkhorn,
    soft_matching,
)

SOLVER = {"temperature": 0.05, "rounds": 6, "iterations": 30}


def graphs(count: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the same vertices in two views."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn((count, 4), generator=generator, dtype=torch.float64)
    return first, first + noise * torch.randn((count, 4), generator=generator, dtype=torch.float64)


def solved(first: torch.Tensor, second: torch.Tensor, neighbours: int, edge_weight: float) -> torch.Tensor:
    edges = [edge_directions(x, neighbours) for x in (first, second)]
    return soft_matching(global_affinity(first, second), edges[0], edges[1], neighbours, edge_weight, **SOLVER)


def edges_slowly(z: np.ndarray, neighbours: int) -> dict[tuple[int, int], np.ndarray]:
    """{(i, j): direction} of every edge, both ways."""
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    found = {}
    for i in range(len(z)):
        others = sorted((j for j in range(len(z)) if j != i), key=lambda j: -unit[i] @ unit[j])
        for j in others[:neighbours]:
            length = np.sqrt(((unit[i] - unit[j]) ** 2).sum() + 1e-4)
            found[i, j], found[j, i] = (unit[i] - unit[j]) / length, (unit[j] - unit[i]) / length
    return found


def scores_slowly(
    first: np.ndarray, second: np.ndarray, neighbours: int, weight: float
) -> dict[tuple[int, ...], float]:
    """The objective of every permutation, by loops over vertices and edges."""
    count = len(first)
    cosine = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in second] for a in first]
    here, there = edges_slowly(first, neighbours), edges_slowly(second, neighbours)
    scores = {}
    for p in itertools.permutations(range(count)):
        total = sum(cosine[i][p[i]] for i in range(count))
        for (i, j), direction in here.items():
            if i < j and (p[i], p[j]) in there:
                total += weight / min(neighbours, count - 1) * direction @ there[p[i], p[j]]
        scores[p] = float(total)
    return scores


@pytest.mark.parametrize(("neighbours", "weight"), [(2, 1.0), (4, 0.5), (9, 2.0)])
def test_objective_of_every_permutation_is_that_of_the_slow_twin(neighbours, weight):
    first, second = graphs(5, 0.5, seed=1)
    vertex, edges = global_affinity(first, second), [edge_directions(x, neighbours) for x in (first, second)]
    for p, expected in scores_slowly(first.numpy(), second.numpy(), neighbours, weight).items():
        matching = torch.eye(5, dtype=torch.float64)[list(p)]
        found = assignment_score(matching, vertex, edges[0], edges[1], neighbours, weight).item()
        assert found == pytest.approx(expected, abs=1e-9)


def test_relaxation_finds_what_brute_force_finds():
    """Of 24 small graphs with much noise; and always where a renumbering was planted with little."""
    best, share = 0, []
    for seed in range(24):
        count, neighbours = 3 + seed % 3, 2
        first, second = graphs(count, 0.6, seed)
        scores = scores_slowly(first.numpy(), second.numpy(), neighbours, 1.0)
        rounded = tuple(linear_sum_assignment(-solved(first, second, neighbours, 1.0).numpy())[1].tolist())
        top, low = max(scores.values()), min(scores.values())
        best += scores[rounded] == top
        share.append((scores[rounded] - low) / (top - low))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        planted = graphs(count, 0.05, seed)[1][order]
        found = solved(first, planted, neighbours, 1.0).argmax(1)
        assert torch.equal(order[found], torch.arange(count))
    assert best >= 22 and np.mean(share) > 0.98


def test_first_order_matching_of_two_has_a_closed_form():
    """Doubly stochastic 2 x 2 scalings of exp(c / t) have odds exp((c00 + c11 - c01 - c10) / 2t)."""
    vertex = torch.tensor([[0.9, 0.2], [-0.3, 0.4]], dtype=torch.float64)
    expected = 1 / (1 + np.exp(-(0.9 + 0.4 - 0.2 + 0.3) / 2 / 0.5))
    found = sinkhorn(vertex / 0.5, 50)
    torch.testing.assert_close(found, torch.tensor([[expected, 1 - expected], [1 - expected, expected]]).double())
    assert hamming(found).item() == pytest.approx(1 - expected)
    assert hamming(torch.eye(4)) == 0 and hamming(torch.eye(4).flip(0)) == 1


def test_edges_decide_where_vertices_cannot():
    """Vertices 0 and 1 look alike in the second view; who is whose neighbour tells them apart."""
    first, second = graphs(5, 0.1, seed=3)
    vertex = torch.zeros((5, 5), dtype=torch.float64)
    edges = [edge_directions(x, 2) for x in (first, second)]
    blind = soft_matching(vertex, edges[0], edges[1], 2, 0.0, **SOLVER)
    seeing = soft_matching(vertex, edges[0], edges[1], 2, 1.0, **SOLVER)
    torch.testing.assert_close(blind, torch.full_like(blind, 0.2))
    assert hamming(seeing) < 0.1


def test_renumbering_changes_nothing_and_views_may_be_swapped():
    first, second = graphs(7, 0.4, seed=4)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    matching = solved(first, second, 3, 1.0)
    torch.testing.assert_close(solved(first[order], second[order], 3, 1.0), matching[order][:, order])
    torch.testing.assert_close(solved(second, first, 3, 1.0), matching.T, rtol=0, atol=1e-3)
    torch.testing.assert_close(matching.sum(0), torch.ones(7).double(), rtol=0, atol=1e-3)


def test_a_gradient_leads_to_the_identity():
    first, second = graphs(6, 1.5, seed=5)
    first.requires_grad_(), second.requires_grad_()
    optimizer = torch.optim.Adam([first, second], lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        edges = [edge_directions(x, 3) for x in (first, second)]
        loss = hamming(soft_matching(global_affinity(first, second), *edges, 3, 1.0, 0.2, 2, 5))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    small = [x.detach()[:3].requires_grad_() for x in (first, second)]

    def value(a, b):
        return hamming(
            soft_matching(global_affinity(a, b), edge_directions(a, 2), edge_directions(b, 2), 2, 1, 0.5, 1, 2)
        )

    assert torch.autograd.gradcheck(value, small)


def test_equal_vertices_have_finite_gradients():
    same = torch.ones((4, 3), requires_grad=True)
    edges = edge_directions(same, 2)
    loss = hamming(soft_matching(global_affinity(same, same), edges, edges, 2, 1.0, 0.1, 3, 5))
    loss.backward()
    assert loss.item() == pytest.approx(0.75, abs=1e-4) and same.grad.isfinite().all()


def test_local_affinity_is_that_of_the_slow_twin_and_sees_no_padding():
    generator = torch.Generator().manual_seed(6)
    first, second = (torch.randn((3, 4, 5), generator=generator, dtype=torch.float64) for _ in range(2))
    here, there = (torch.rand((3, 4), generator=generator) > 0.3 for _ in range(2))
    here[1] = False
    found = local_affinity(first, second, here, there)
    for i, a in itertools.product(range(3), range(3)):
        x, y = first[i][here[i]].numpy(), second[a][there[a]].numpy()
        cosine = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T
        expected = (cosine.max(1).mean() + cosine.max(0).mean()) / 2 if cosine.size else 0
        assert found[i, a].item() == pytest.approx(expected, abs=1e-12)
    hidden = torch.where(here[..., None], first, torch.nan)
    torch.testing.assert_close(local_affinity(torch.nan_to_num(hidden, 7.0), second, here, there), found)


def test_neighbours_are_never_a_vertex_itself():
    near = nearest_neighbours(graphs(6, 0, seed=7)[0], 2)
    assert not near.diagonal().any() and torch.equal(near, near.T) and (near.sum(1) >= 2).all()
    support = edge_support(torch.eye(6).double(), *[edge_directions(graphs(6, 0, seed=7)[0], 2)] * 2, 2)
    assert (support.diagonal() > 0.9).all(), "every vertex's own edges agree with themselves"
