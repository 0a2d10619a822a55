"""LeJEPA: both terms against a slow twin, directions that all ranks share, collapse seen, and the suite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl3d.augment import Compose, GaussianNoise, SpatialTransform
from ssl3d.models.vit import ViT
from ssl3d.seeding import mix
from ssl3d.tasks.lejepa import LeJEPA
from ssl3d.testing.pairs import sigreg_floor
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = (8, 16, 24)
SMALL = {"patch_size": SIZE, "hidden_dim": 16, "out_dim": 8, "directions": 64}


def views() -> Compose:
    return Compose([SpatialTransform(p_rotation=1, shift=0.2), GaussianNoise(p=0.5)])


def make(**values) -> LeJEPA:
    torch.manual_seed(0)
    return LeJEPA(TinyUNet(), augment=views(), **SMALL | values)


class TestLeJEPA(TaskTests):
    overfit_steps = 150
    loss_floor = 0.05 * sigreg_floor(make().sigreg)

    def make_task(self):
        return LeJEPA(TinyUNet(2), augment=views(), **SMALL, views=3)

    def make_batch(self, task):
        return make_batch(task.region.size, batch=2, channels=2)


class TestLeJEPAOnTokens(TestLeJEPA):
    overfit_lr = 3e-3

    def make_task(self):
        return LeJEPA(ViT("tiny", in_channels=2, patch_size=(2, 4, 4)), augment=views(), **SMALL)


def test_both_terms_equal_their_numpy_twin():
    task = make(knots=9, highest=2.0).double()
    embedded = torch.randn((3, 5, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seeds = torch.tensor([4, 9, 2, 6, 1])
    regularity, distance = task.terms(embedded, seeds)
    drawn = torch.Generator().manual_seed(mix(22, "directions"))
    directions = torch.randn((8, 64), dtype=torch.float64, generator=drawn).numpy()
    directions /= np.linalg.norm(directions, axis=0)
    t, z, statistics = np.linspace(0, 2, 9).astype(np.float32).astype(float), embedded.numpy(), []
    normal = np.exp(-(t**2) / 2)
    for view in z:
        for direction in directions.T:
            found = np.exp(1j * np.outer(t, view @ direction)).mean(1)
            statistics.append(5 * 2 * np.trapezoid(np.abs(found - normal) ** 2 * normal, t))
    np.testing.assert_allclose(regularity.item(), np.mean(statistics), rtol=1e-6)  # lightly's table is in float32
    np.testing.assert_allclose(distance.item(), ((z - z.mean(0)) ** 2).mean(), rtol=1e-9)


def test_directions_follow_the_samples_and_leave_the_global_stream_alone():
    task = make()
    embedded = torch.randn(2, 4, 8)
    seeds = torch.arange(4)
    before = torch.get_rng_state()
    first = task.terms(embedded, seeds)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, task.terms(embedded, seeds.flip(0))[0]), "as ranks may have them in any order"
    assert not torch.equal(first, task.terms(embedded, seeds + 1)[0])


def test_a_gaussian_is_what_it_asks_for_and_collapse_is_noticed():
    task, batch = make(out_dim=4), make_batch(make().region.size, batch=3)
    normal = torch.randn((2, 512, 4), generator=torch.Generator().manual_seed(0))
    seeds = torch.arange(512)
    best = task.terms(normal, seeds)[0]
    for wrong in (0 * normal, 3 * normal, normal + 1, normal.abs()):
        assert task.terms(wrong, seeds)[0] > 5 * best
    with torch.no_grad():
        task.projector[-1].weight.zero_()
    result = task(batch)
    assert result["feature_std"] == 0 and result["distance"] == 0 and result["sigreg"] > 1


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"^augment: without a transform"):
        LeJEPA(TinyUNet(), augment=Compose([]), **SMALL)
    for key, value in (("views", 1), ("sigreg_weight", 1.5), ("directions", 0), ("knots", 1), ("highest", 0.0)):
        with pytest.raises(ValueError, match=rf"^{key}={value}"):
            make(**{key: value})
    task = make()
    with pytest.raises(ValueError, match=r"^data.batch_size: LeJEPA compares"):
        task(make_batch(task.region.size, batch=1))
