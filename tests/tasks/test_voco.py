"""VoCo: overlaps from the geometry, losses against published numbers and slow twins, teacher, plateau, suite."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ssl3d.augment import Brightness, Compose, SpatialTransform
from ssl3d.losses.overlap import negative_term, positive_term, predicted_overlap, spread_of_bases
from ssl3d.models.vit import ViT
from ssl3d.tasks.voco import VoCo
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

CROP = (8, 4, 6)
SMALL = {"crop_size": CROP, "hidden_dim": 32}
FLIPS = Compose([SpatialTransform(p_rotation=0, p_scale=0), Brightness(p=1)])


class TestVoCo(TaskTests):
    overfit_steps, overfit_lr = 60, 3e-3

    def make_task(self):
        return VoCo(TinyUNet(), grid=(1, 3, 2), augment=FLIPS, **SMALL)


class TestVoCoV2(TaskTests):
    overfit_steps, overfit_lr = 60, 3e-3
    loss_floor = 0.0

    def make_task(self):
        return VoCo(TinyUNet(2), grid=(2, 2, 2), version="v2", teacher="projector", **SMALL)


class TestVoCoOnTokens(TestVoCo):
    overfit_steps, overfit_lr = 60, 3e-3

    def make_task(self):
        return VoCo(ViT("tiny", patch_size=(4, 2, 2)), grid=(1, 3, 2), **SMALL)


def overlaps(task: VoCo, batch, starts) -> torch.Tensor:
    return task.overlap(task.read_crop(batch, starts, "crop")[1], starts)


@pytest.mark.parametrize("grid", [(1, 4, 4), (1, 3, 3), (3, 3, 3), (2, 1, 3)])
@pytest.mark.parametrize("augment", [None, FLIPS], ids=["plain", "flipped"])
def test_overlap_is_the_product_of_overlaps_on_each_axis(grid, augment):
    task = VoCo(TinyUNet(), grid=grid, augment=augment, **SMALL)
    batch = make_batch(task.region.size, batch=40)
    starts = task.draw_starts(batch)[:, 0]
    found = overlaps(task, batch, starts).numpy()
    for b in range(40):
        expected = [
            np.prod([max(0, n - abs(int(s) - c * n)) / n for s, c, n in zip(starts[b], cell, CROP)])
            for cell in itertools.product(*map(range, grid))
        ]
        np.testing.assert_allclose(found[b], expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert ((found > 0).sum(1) <= 2 ** sum(g > 1 for g in grid)).all()
    assert len({tuple(s) for s in starts.tolist()}) > 5


def test_a_crop_on_a_base_is_one_hot_and_turned_crops_are_counted_where_they_lie():
    task = VoCo(TinyUNet(), grid=(1, 3, 2), **SMALL)
    batch = make_batch(task.region.size, batch=1)
    assert torch.equal(overlaps(task, batch, torch.tensor([[0, 4, 6]])), torch.eye(6)[None, 3])
    turned = Compose([SpatialTransform(p_rotation=1, rotation=40, p_scale=1, max_reach=3)])
    task = VoCo(TinyUNet(), grid=(1, 3, 2), augment=turned, **SMALL)
    batch = make_batch(task.region.size, batch=5)
    starts = task.draw_starts(batch)[:, 0]
    crop, geometry = task.read_crop(batch, starts, "crop")
    found = task.overlap(geometry, starts)
    # Where each voxel lies, from world coordinates alone: affine of the crop, back through the region's affine.
    for b in range(5):
        grid = np.stack(np.meshgrid(*map(np.arange, CROP), indexing="ij"), -1).reshape(-1, 3)
        world = (grid + crop.start[b].numpy()) @ crop.affine[b, :3, :3].numpy().T + crop.affine[b, :3, 3].numpy()
        back = np.linalg.inv(batch.affine[b].numpy())
        place = world @ back[:3, :3].T + back[:3, 3] - batch.start[b].numpy() - np.array(task.margin) + 0.5
        cell = np.floor(place / CROP).astype(int)
        share = [(cell == c).all(1).mean() for c in itertools.product(range(1), range(3), range(2))]
        np.testing.assert_allclose(found[b].numpy(), share, atol=2 / len(grid))


def test_crops_are_the_voxels_of_the_region():
    task = VoCo(TinyUNet(), grid=(1, 3, 2), **SMALL)
    batch = make_batch(task.region.size, batch=2, padded=3)
    tiles = [c.image for c in task.base_crops(batch)]
    assert torch.equal(tiles[3], batch.image[:, :, :, 4:8, 6:12])
    starts = task.draw_starts(batch)[:, 1]
    crop, _ = task.read_crop(batch, starts, "crop")
    z, y, x = starts[1].tolist()
    assert torch.equal(crop.image[1], batch.image[1, :, z : z + 8, y : y + 4, x : x + 6])
    assert crop.valid is not None and torch.equal(crop.start, batch.start + starts)


def test_losses_equal_published_numbers_and_their_twins():
    four = torch.zeros((1, 1, 9), dtype=torch.float64)
    four[..., :4] = 0.25
    zero = torch.zeros_like(four)
    assert positive_term(zero, four).item() == pytest.approx(0.288, abs=5e-4), "the published plateau"
    assert positive_term(four, four).item() < 1e-5 and negative_term(zero, four, "v1").item() == 0
    generator = torch.Generator().manual_seed(0)
    p, y = torch.rand((2, 3, 2, 5), generator=generator, dtype=torch.float64)
    y = torch.where(y > 0.6, y, 0)
    for b in range(3):
        pairs = list(zip(y[b].flatten().tolist(), p[b].flatten().tolist()))
        positive = sum(-v * np.log(1 - abs(v - q) + 1e-6) for v, q in pairs)
        assert positive_term(p, y)[b].item() == pytest.approx(float(positive / (y[b].sum() + 1e-6)), rel=1e-12)
        for version, cost in (("v1", lambda q: q**2), ("v2", lambda q: -np.log(1 - q + 1e-6))):
            apart = [float(cost(q)) for v, q in pairs if v == 0]
            assert negative_term(p, y, version)[b].item() == pytest.approx(np.mean(apart), rel=1e-6)
    assert spread_of_bases(torch.eye(4)[None]).item() == 0
    assert spread_of_bases(torch.ones(1, 4, 3)).item() == pytest.approx(1)
    z = torch.randn((1, 5, 3), generator=generator, dtype=torch.float64)
    unit = (z / z.norm(dim=-1, keepdim=True))[0].numpy()
    twin = np.mean([max(0.0, unit[i] @ unit[j]) ** 2 for i in range(5) for j in range(i + 1, 5)])
    assert spread_of_bases(z).item() == pytest.approx(twin, rel=1e-12)


def test_the_gradient_does_not_vanish_on_the_plateau():
    crops = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    bases = torch.tensor([[[-1.0, 0.2], [-1.0, -0.2]]])
    overlap = torch.tensor([[[0.6, 0.4]]])
    for plateau, moves in (("published", False), ("straight-through", True)):
        predicted = predicted_overlap(crops, bases, plateau)
        assert (predicted == 0).all()
        (gradient,) = torch.autograd.grad(positive_term(predicted, overlap).sum(), crops)
        assert (gradient.abs().max() > 0.01) == moves


class AlmostTheSame(TinyUNet):
    """Pools features that are nearly those of every other crop, as networks with instance norm do."""

    def pool(self, features):
        return 1e3 + 1e-2 * super().pool(features)


def test_crops_whose_features_are_almost_the_same_are_told_apart():
    batch = make_batch((8, 12, 12), batch=2)
    embeddings = []
    for backbone in (TinyUNet, AlmostTheSame):
        torch.manual_seed(0)
        task = VoCo(backbone().double(), grid=(1, 3, 2), **SMALL).double()
        images, _ = task.draw_crops(batch.replace(image=batch.image.double()))
        embeddings.append(task.embed(images, 2)[0])
    torch.testing.assert_close(*embeddings, rtol=0.05, atol=0.05)
    assert spread_of_bases(embeddings[1]).max() < 0.9


def test_the_teacher_starts_as_the_student_and_follows():
    task = VoCo(TinyUNet(), grid=(1, 3, 2), momentum=0.75, **SMALL)
    batch = make_batch(task.region.size, batch=2)
    student, teacher = task.embed(torch.cat([c.image for c in task.base_crops(batch)]), 2)
    assert torch.equal(student, teacher) and not teacher.requires_grad
    task(batch)["loss"].backward()
    assert all(p.grad is None for n, p in task.named_parameters() if n.startswith("teacher"))
    before = [p.clone() for p in task.teacher_projector.parameters()]
    with torch.no_grad():
        for p in task.projector.parameters():
            p.add_(1.0)
    task.after_step(0, 10)
    for old, new, theirs in zip(before, task.teacher_projector.parameters(), task.projector.parameters()):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * theirs)


def test_v2_with_one_volume_has_no_inter_volume_term():
    task = VoCo(TinyUNet(), grid=(1, 3, 2), version="v2", **SMALL)
    assert "inter_volume" not in task(make_batch(task.region.size, batch=1))
    assert "inter_volume" in task(make_batch(task.region.size, batch=2))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("grid", (1, 1, 1)), ("crops", 0), ("momentum", 1.5), ("dropout", -1), ("crop_size", (7, 4, 6)),
        ("hidden_dim", 0),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(ValueError, match=f"^{key}"):
        VoCo(TinyUNet(), **{**SMALL, "grid": (1, 3, 2), key: value})
