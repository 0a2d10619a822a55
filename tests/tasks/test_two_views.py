"""SimCLR and VICReg: losses against slow twins, views of their own, and the suite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl3d.augment import Compose, GaussianNoise, SpatialTransform
from ssl3d.models.vit import ViT
from ssl3d.tasks.simclr import SimCLR
from ssl3d.tasks.vicreg import VICReg
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = (8, 16, 24)
SMALL = {"patch_size": SIZE, "hidden_dim": 16, "out_dim": 8}


def views() -> Compose:
    return Compose([SpatialTransform(p_rotation=1, shift=0.2), GaussianNoise(p=0.5)])


class TestSimCLR(TaskTests):
    overfit_steps = 200

    def make_task(self):
        return SimCLR(TinyUNet(2), augment=views(), **SMALL)

    def make_batch(self, task):
        return make_batch(task.region.size, batch=2, channels=2)


class TestSimCLROnTokens(TestSimCLR):
    overfit_lr = 3e-3

    def make_task(self):
        return SimCLR(ViT("tiny", in_channels=2, patch_size=(2, 4, 4)), augment=views(), **SMALL)


class TestVICReg(TestSimCLR):
    loss_floor = 0.0
    overfit_steps = 300

    def make_task(self):
        return VICReg(TinyUNet(2), augment=views(), **SMALL)


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn((5, 8), generator=generator, dtype=torch.float64)
    return first, first + 0.5 * torch.randn((5, 8), generator=generator, dtype=torch.float64)


def test_nt_xent_equals_its_numpy_twin():
    first, second = embeddings()
    loss = SimCLR(TinyUNet(), augment=views(), temperature=0.2, **SMALL).compare(first, second).item()
    z = torch.cat([first, second]).numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    terms = []
    for i in range(10):
        other = (i + 5) % 10
        similar = np.exp(z @ z[i] / 0.2)
        terms.append(-np.log(similar[other] / (similar.sum() - similar[i])))
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-9)


def test_vicreg_equals_its_numpy_twin():
    first, second = embeddings()
    task = VICReg(TinyUNet(), augment=views(), invariance=2.0, variance=3.0, covariance=5.0, **SMALL)
    loss = task.compare(first, second).item()
    variance, covariance = 0.0, 0.0
    for z in (first.numpy(), second.numpy()):
        variance += 0.5 * np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean()
        c = np.cov(z.T)
        covariance += ((c**2).sum() - (np.diag(c) ** 2).sum()) / 8
    invariance = ((first - second).numpy() ** 2).mean()
    np.testing.assert_allclose(loss, 2 * invariance + 3 * variance + 5 * covariance, rtol=1e-9)


def test_views_are_crops_of_their_own():
    task = SimCLR(TinyUNet(), augment=views(), **SMALL)
    batch = make_batch(task.region.size, batch=4)
    seen = []
    encode = task.backbone.encode
    task.backbone.encode = lambda x: seen.append(x) or encode(x)  # type: ignore[func-returns-value, method-assign]
    task(batch)
    first, second = seen[0].chunk(2)
    assert first.shape == (4, 1, *SIZE) and not torch.allclose(first, second, atol=0.1)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"^augment: without a transform"):
        SimCLR(TinyUNet(), augment=Compose([]), **SMALL)
    with pytest.raises(ValueError, match=r"^temperature=0"):
        SimCLR(TinyUNet(), augment=views(), temperature=0.0, **SMALL)
    task = VICReg(TinyUNet(), augment=views(), **SMALL)
    with pytest.raises(ValueError, match=r"^data.batch_size: VICReg compares"):
        task(make_batch(task.region.size, batch=1))
