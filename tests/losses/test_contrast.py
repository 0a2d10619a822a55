"""Weighted contrast: slow numpy twins, NT-Xent where it degenerates, what is and what is not a negative."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssl3d.losses.contrast import alike, contrast, place_contrast, position_contrast, same_part


def embeddings(batch: int = 6, views: int = 2, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn((batch, views, dim), generator=generator, dtype=torch.float64)
    return embedded, torch.rand((batch, views), generator=generator, dtype=torch.float64)


def unit(x: torch.Tensor) -> np.ndarray:
    return (x / x.norm(dim=-1, keepdim=True)).numpy()


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_without_exclusions_it_is_nt_xent(temperature):
    from lightly.loss import NTXentLoss

    embedded, z = embeddings()
    found = position_contrast(embedded, z, "GR", temperature, 0.1, None)
    expected = NTXentLoss(temperature=temperature)(embedded[:, 0], embedded[:, 1])
    torch.testing.assert_close(found["loss"], expected, rtol=1e-12, atol=0)
    assert found["negatives"] == 10
    # Samples too far apart to share a height exclude nothing, whatever the kind of pairs.
    far = torch.arange(6, dtype=torch.float64)[:, None].expand(6, 2)
    for pairs in ("GD-", "GD"):
        again = position_contrast(embedded, far, pairs, temperature, 0.01, None)
        torch.testing.assert_close(again["loss"], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("parts", [None, 4], ids=["soft", "hard"])
@pytest.mark.parametrize("pairs", ["GR", "GD-", "GD"])
@pytest.mark.parametrize("views", [2, 3])
def test_global_loss_equals_its_slow_twin(pairs, parts, views):
    embedded, z = embeddings(views=views)
    found = position_contrast(embedded, z, pairs, 0.2, 0.15, parts)["loss"].item()
    u, z = unit(embedded), z.numpy()

    def same(i, v, j, w):
        if i == j:
            return 1.0
        if parts:
            return float(math.floor(z[i, v] * parts) == math.floor(z[j, w] * parts))
        return math.exp(-((z[i, v] - z[j, w]) ** 2) / (2 * 0.15**2))

    items = [(i, v) for i in range(len(u)) for v in range(views)]
    anchors = []
    for i, v in items:
        negative = 0.0
        for j, w in items:
            share = (0.0 if i != j else 1.0) if pairs == "GR" else same(i, v, j, w)
            negative += (1 - share) * math.exp(u[i, v] @ u[j, w] / 0.2)
        cost, weight = 0.0, 0.0
        for j, w in items:
            if (i, v) == (j, w):
                continue
            share = 1.0 if i == j else 0.0
            if pairs == "GD" and i != j and (v == w or not parts):
                share = same(i, v, j, w)
            e = math.exp(u[i, v] @ u[j, w] / 0.2)
            cost += -share * math.log(e / (e + negative))
            weight += share
        anchors.append(cost / weight)
    assert found == pytest.approx(np.mean(anchors), rel=1e-12)


def test_what_lies_in_the_same_part_is_no_negative_and_gets_no_gradient():
    embedded, z = embeddings()
    similarity = torch.randn((6, 6), dtype=torch.float64, requires_grad=True)
    same = same_part(z[:, 0], z[:, 0], 4)
    assert same[~torch.eye(6, dtype=torch.bool)].sum() > 0
    positive = torch.eye(6).roll(1, 1)
    contrast(similarity, positive, 1 - same).sum().backward()
    assert similarity.grad is not None
    reached = ((same == 0) | (positive == 1)) & (same == 0).any(1, keepdim=True)
    assert torch.equal(similarity.grad != 0, reached)
    # All of one height: nothing to tell apart, no cost, no gradient, no NaN.
    leaf = embedded.clone().requires_grad_()
    for pairs in ("GD-", "GD"):
        found = position_contrast(leaf, torch.full_like(z, 0.3), pairs, 0.1, 0.1, 4)
        (gradient,) = torch.autograd.grad(found["loss"], leaf)
        assert found["loss"] == 0 and found["negatives"] == 0 and (gradient == 0).all()


def test_order_of_the_volumes_does_not_matter():
    embedded, z = embeddings()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for pairs in ("GR", "GD-", "GD"):
        one, other = (position_contrast(embedded[o], z[o], pairs, 0.1, 0.1, None) for o in (slice(None), order))
        torch.testing.assert_close(one["loss"], other["loss"], rtol=1e-12, atol=0)


def test_parts_cover_every_slice():
    """Published parts leave the last Z mod S slices out."""
    for slices, parts in ((10, 4), (7, 3), (5, 8)):
        z = (torch.arange(slices) + 0.5) / slices
        found = same_part(z, (torch.arange(parts) + 0.5) / parts, parts)
        assert (found.sum(1) == 1).all()
    edges = torch.tensor([0.0, 1.0])
    assert torch.equal(same_part(edges, torch.tensor([0.1, 0.9]), 4), torch.eye(2))
    assert alike(torch.zeros(1, 3), torch.tensor([[0.1, 0.0, 0.0]]), 0.1).item() == pytest.approx(math.exp(-0.5))


def test_any_temperature_is_safe_in_float32():
    embedded, z = embeddings()
    leaf = embedded.float().requires_grad_()
    for temperature in (1e-3, 1e-2, 100.0):
        found = position_contrast(leaf, z.float(), "GD", temperature, 0.1, None)["loss"]
        (gradient,) = torch.autograd.grad(found, leaf)
        exact = position_contrast(embedded, z, "GD", temperature, 0.1, None)["loss"]
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
        assert gradient.isfinite().all()


def places(count: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    embedded = torch.randn((3, 2, count, 4), generator=generator, dtype=torch.float64)
    place = 30 * torch.rand((3, count, 3), generator=generator, dtype=torch.float64)
    matched = torch.rand((3, count), generator=generator) < 0.8
    assert not matched.all() and matched.any(1).all()
    return embedded, matched, place


@pytest.mark.parametrize("across", [False, True], ids=["LR", "LD"])
@pytest.mark.parametrize(("nearest", "distance"), [(0, 0.0), (0, 12.0), (2, 0.0), (2, 12.0), (9, 0.0)])
def test_local_loss_equals_its_slow_twin(nearest, distance, across):
    embedded, matched, place = places()
    batch, views, count, _ = embedded.shape
    weights = None
    if across:
        weights = torch.rand((batch, views * count, batch, views * count), dtype=torch.float64)
        weights *= ~torch.eye(batch, dtype=torch.bool)[:, None, :, None] * (weights > 0.5)
        weights = weights.flatten(2)
    found = place_contrast(embedded, matched, place, 0.2, nearest, distance, weights).item()
    u, ok, mm = unit(embedded), matched.numpy(), place.numpy()
    samples = []
    for b in range(batch):
        costs = []
        for v in range(views):
            for k in range(count):
                if not ok[b, k]:
                    continue
                apart = {j: np.linalg.norm(mm[b, j] - mm[b, k]) for j in range(count) if j != k and ok[b, j]}
                chosen = sorted((d, j) for j, d in apart.items() if d >= distance)
                chosen = chosen[:nearest] if nearest else chosen
                negative = sum(math.exp(u[b, v, k] @ u[b, w, j] / 0.2) for _, j in chosen for w in range(views))
                e = math.exp(u[b, v, k] @ u[b, 1 - v, k] / 0.2)
                cost, weight = -math.log(e / (e + negative)), 1.0
                if weights is not None:
                    row = weights[b, v * count + k].view(batch, views, count).numpy()
                    for c, w, j in np.argwhere(row > 0):
                        e = math.exp(u[b, v, k] @ u[c, w, j] / 0.2)
                        cost += -row[c, w, j] * math.log(e / (e + negative))
                        weight += row[c, w, j]
                costs.append(cost / weight)
        samples.append(np.mean(costs))
    assert found == pytest.approx(np.mean(samples), rel=1e-12)


def test_places_that_only_one_view_shows_get_no_gradient():
    embedded, matched, place = places()
    leaf = embedded.clone().requires_grad_()
    place_contrast(leaf, matched, place, 0.1).backward()
    assert leaf.grad is not None
    assert torch.equal((leaf.grad != 0).any(-1), matched[:, None].expand(-1, 2, -1))
    none = place_contrast(leaf, torch.zeros_like(matched), place, 0.1)
    (gradient,) = torch.autograd.grad(none, leaf)
    assert none == 0 and (gradient == 0).all()
