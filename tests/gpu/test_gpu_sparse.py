"""Visible voxels alone on a GPU: the same features and gradients as on the CPU, and SparseMAE in bfloat16."""

from __future__ import annotations

import pytest
import torch

from ssl3d.log import read_metrics
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.sparse import encode_visible
from ssl3d.testing.backbone import randomise
from ssl3d.train import train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("gather", [None, [True] * 4, [False] * 4])
@pytest.mark.parametrize("block", [(8, 8, 8), (4, 16, 4)])
def test_features_and_gradients_are_those_of_the_cpu(device, block, gather):
    torch.manual_seed(0)
    backbone = ResEncUNet("S").double()
    randomise(backbone)
    image = torch.randn((2, 1, 16, 32, 24), dtype=torch.float64)
    grid = [n // b for n, b in zip(image.shape[2:], block)]
    hidden = torch.rand((2, *grid)) < 0.6
    found = []
    for place in ("cpu", device):
        backbone.to(place).zero_grad()
        rows = encode_visible(backbone, image.to(place), hidden.to(place), block, gather).rows
        sum(r.sin().sum() for r in rows).backward()  # type: ignore[union-attr]
        gradients = [p.grad.cpu() for p in backbone.encoder.parameters() if p.grad is not None]
        found.append(([r.detach().cpu() for r in rows], gradients))
    (first, of_first), (second, of_second) = found
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-9)
    largest = max(g.abs().max().item() for g in of_first)
    for a, b in zip(of_first, of_second, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-10 * largest)


def test_sparse_masked_autoencoding_learns_in_bfloat16(recipe, device):
    overrides = ["task._target_=ssl3d.tasks.sparse_mae.SparseMAE", "run.steps=30", "optim.lr=3e-3", "data.batch_size=4"]
    losses = [line["loss"] for line in read_metrics(train(recipe(*overrides)) / "metrics.jsonl")]
    assert len(losses) == 30 and sum(losses[-5:]) < 0.8 * sum(losses[:5])
