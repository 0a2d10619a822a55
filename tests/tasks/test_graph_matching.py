"""GraphMatching: the loss against a slow twin, padding, invariances, what is refused, and the suite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl3d.augment import Compose, GaussianNoise, SpatialTransform
from ssl3d.models.vit import ViT
from ssl3d.tasks.graph_matching import GraphMatching
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = (8, 16, 24)
SMALL = {"patch_size": SIZE, "hidden_dim": 16, "out_dim": 8, "cells": 2}


def views() -> Compose:
    return Compose([SpatialTransform(p_rotation=1, shift=0.2), GaussianNoise(p=0.5)])


class TestGraphMatching(TaskTests):
    overfit_steps = 60

    def make_task(self):
        return GraphMatching(TinyUNet(2), augment=views(), **SMALL)

    def make_batch(self, task):
        return make_batch(task.region.size, batch=2, channels=2)


class TestOnTokensWithPadding(TestGraphMatching):
    overfit_lr = 3e-3

    def make_task(self):
        return GraphMatching(ViT("tiny", in_channels=2, patch_size=(2, 4, 4)), augment=views(), **SMALL)

    def make_batch(self, task):
        return make_batch(task.region.size, batch=3, channels=2, padded=6)

    def test_order_of_the_groups_does_not_matter(self):
        task, batch = self.prepared()
        order = torch.tensor([2, 0, 1])
        torch.testing.assert_close(self.loss(task, batch._map(lambda t: t[order])), self.loss(task, batch))


def deviation(views: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(views).flatten(0, -2).std(0, correction=0)


def test_loss_is_that_of_a_slow_twin():
    """First order, so that the twin is short; edges have theirs in tests/losses/test_matching.py."""
    task = GraphMatching(TinyUNet(), augment=views(), **SMALL, global_share=0.7, edge_weight=0.0).double().eval()
    batch = make_batch(task.region.size, batch=3)
    batch = batch.replace(image=batch.image.double())
    result = task(batch)
    pooled, cells = [], []
    with torch.no_grad():
        for view in (0, 1):
            features = task.backbone.encode(task.augment(batch, SIZE, view)[0].image)
            pooled.append(task.backbone.pool(features))
            coarse = features[-1].reshape(3, -1, 2, 2, 2, 4, 2, 6).mean((3, 5, 7)).flatten(2).transpose(1, 2)
            cells.append(coarse)
        pooled = [task.projector((one - torch.cat(pooled).mean(0)) / deviation(pooled)).numpy() for one in pooled]
        mean = torch.cat(cells).mean((0, 1))
        cells = [task.local_projector((one - mean) / deviation(cells)).numpy() for one in cells]

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    affinity = 0.7 * unit(pooled[0]) @ unit(pooled[1]).T
    for i in range(3):
        for a in range(3):
            cosine = unit(cells[0][i]) @ unit(cells[1][a]).T
            affinity[i, a] += 0.3 * (cosine.max(0).mean() + cosine.max(1).mean()) / 2
    matching = np.exp(affinity / 0.1)
    for _ in range(10):
        matching /= matching.sum(0, keepdims=True)
        matching /= matching.sum(1, keepdims=True)
    assert result["loss"].item() == pytest.approx(np.abs(matching - np.eye(3)).sum() / 6, rel=1e-6)
    assert result["matched_share"] == (matching.argmax(1) == np.arange(3)).mean()


def test_cells_of_padding_are_not_compared():
    task = GraphMatching(TinyUNet(), augment=Compose([GaussianNoise(p=1)]), **SMALL)
    batch = make_batch(SIZE, batch=2, padded=12)
    seen = [task.augment(batch, SIZE, view)[0] for view in (0, 1)]
    features = torch.randn((4, 16, 4, 8, 12), requires_grad=True)
    task.compare_cells(seen, features).sum().backward()
    assert features.grad is not None
    assert (features.grad[..., 6:] == 0).all() and (features.grad[..., :6] != 0).any()


def test_pooled_embeddings_alone_need_no_cells():
    task = GraphMatching(TinyUNet(), augment=views(), **SMALL, global_share=1.0)
    assert not hasattr(task, "local_projector")
    assert task(make_batch(task.region.size, batch=4))["loss"].isfinite()


@pytest.mark.parametrize(
    ("key", "value"),
    [("global_share", 1.5), ("edge_weight", -1.0), ("temperature", 0.0), ("neighbours", 0), ("rounds", -1),
     ("iterations", 0), ("cells", 0), ("hidden_dim", 0)],
)  # fmt: skip
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(ValueError, match=f"^{key}={value}"):
        GraphMatching(TinyUNet(), augment=views(), **SMALL | {key: value})


def test_a_single_scan_cannot_be_matched():
    task = GraphMatching(TinyUNet(), augment=views(), **SMALL)
    with pytest.raises(ValueError, match=r"^data.batch_size: GraphMatching"):
        task(make_batch(task.region.size, batch=1))
