"""Volume Fusion: mixtures are exact, samplers match published histograms, groups come from where they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl3d.augment import Compose, GaussianNoise, SpatialTransform
from ssl3d.losses.dense import dice_ce
from ssl3d.models.vit import ViT
from ssl3d.tasks.volume_fusion import VolumeFusion, fuse, partner
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = (8, 16, 24)
SMALL = {"smallest": (2, 3, 3), "largest": (4, 8, 8)}


class TestVolumeFusion(TaskTests):
    overfit_steps = 250

    def make_task(self):
        return VolumeFusion(TinyUNet(), SIZE, **SMALL)


class TestVolumeFusionAcrossVolumes(TaskTests):
    overfit_steps = 250

    def make_task(self):
        moved = Compose([SpatialTransform(p_rotation=1), GaussianNoise(p=1)])
        return VolumeFusion(TinyUNet(2), SIZE, levels=2, source="different", sampler="boxes", augment=moved, **SMALL)


class TestVolumeFusionOnTokens(TaskTests):
    overfit_steps, overfit_lr = 250, 3e-3

    def make_task(self):
        return VolumeFusion(ViT("tiny", patch_size=(2, 4, 4)), SIZE, levels=2, **SMALL)


def test_mixtures_rebuild_exactly():
    task = VolumeFusion(TinyUNet(), SIZE, **SMALL)
    batch = make_batch(SIZE, batch=4)
    label = task.draw(batch)
    first, second = batch.image, partner(batch.image)
    assert torch.equal(second[0], first[1]) and torch.equal(second[3], first[2])
    fused = fuse(first, second, label, 4)
    assert torch.equal(fused[label == 0], second[label == 0]) and torch.equal(fused[label == 4], first[label == 4])
    alpha = label / 4
    torch.testing.assert_close(fused, alpha * first + (1 - alpha) * second)
    assert torch.equal(fuse(first, first, label, 4), first)
    assert label.min() == 0 and set(label.unique().tolist()) == {0, 1, 2, 3, 4}


def histogram(task: VolumeFusion, size, samples: int = 60) -> np.ndarray:
    generators = [torch.Generator().manual_seed(i) for i in range(samples)]
    draw = task.draw_blocks if task.sampler == "blocks" else task.draw_boxes
    counts = sum(torch.bincount(draw(size, g).flatten(), minlength=5) for g in generators)
    return (counts / counts.sum()).numpy()


def test_histogram_of_the_published_box_sampler():
    """Measured from the published sampler (patch 64 x 128 x 128): .47, .14, .15, .12, .13."""
    task = VolumeFusion(TinyUNet(), (64, 128, 128), sampler="boxes", smallest=8, largest=(40, 80, 80))
    np.testing.assert_allclose(histogram(task, task.input_size), [0.47, 0.14, 0.15, 0.12, 0.13], atol=0.06)


def test_blocks_hold_their_ratio():
    """The published block sampler leaves the remainder of the lattice background (.43); ours covers the margin."""
    task = VolumeFusion(TinyUNet(), (64, 128, 128), smallest=(5, 8, 8), largest=(20, 32, 32))
    np.testing.assert_allclose(histogram(task, task.input_size), [0.30, *[0.175] * 4], atol=0.03)


def test_padding_enters_no_loss():
    task = VolumeFusion(TinyUNet(), SIZE, **SMALL)
    batch = make_batch(SIZE, batch=2, padded=5)
    logits = torch.randn((2, 5, *SIZE), requires_grad=True)
    task.classify.forward = lambda features, size: logits
    task(batch)["loss"].backward()
    assert batch.valid is not None and logits.grad is not None
    assert torch.equal((logits.grad != 0).any(1, keepdim=True), batch.valid)


def test_dice_and_cross_entropy_equal_their_numpy_twin():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((3, 4, 3, 4, 5), generator=generator, dtype=torch.float64)
    label = torch.randint(4, (3, 1, 3, 4, 5), generator=generator)
    where = torch.rand((3, 1, 3, 4, 5), generator=generator) < 0.7
    where[2] = False  # a sample of padding alone
    dice, entropy = (v.item() for v in dice_ce(logits, label, where))
    dices, entropies = [], []
    for b in range(2):
        z, y, w = logits[b].numpy(), label[b, 0].numpy(), where[b, 0].numpy()
        p = np.exp(z) / np.exp(z).sum(0)
        scores = []
        for k in range(4):
            truth = (y == k) & w
            both, size = (p[k] * truth).sum(), (p[k] * w).sum() + truth.sum()
            scores.append(1 - (2 * both + 1e-5) / (size + 1e-5))
        dices.append(np.mean(scores))
        entropies.append(np.mean([-np.log(p[y[i], i[0], i[1], i[2]]) for i in zip(*np.nonzero(w))]))
    np.testing.assert_allclose([dice, entropy], [np.mean(dices), np.mean(entropies)], rtol=1e-12)


def test_where_the_two_come_from():
    assert VolumeFusion(TinyUNet(), SIZE, **SMALL).region.same_volume
    across = VolumeFusion(TinyUNet(), SIZE, source="different", **SMALL).region
    assert across.group == 2 and across.same_modality and not across.same_volume


@pytest.mark.parametrize(
    ("key", "value"),
    [("levels", 0), ("ratio", 1.5), ("count", (0, 4)), ("smallest", 40), ("largest", 1), ("patch_size", (9, 16, 24))],
)
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(ValueError, match=rf"^({key}|smallest)"):
        VolumeFusion(TinyUNet(), **{"patch_size": SIZE, **SMALL, key: value})
