"""PositionRegression: its targets are world positions under every augmentation, and the suite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl3d.augment import Compose, GaussianNoise, SpatialTransform, centre_crop
from ssl3d.models.vit import ViT
from ssl3d.tasks.position import PositionRegression, normalised_coordinates
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = (8, 16, 24)
MOVED = Compose([SpatialTransform(p_rotation=1, p_scale=1, p_axis_scale=1, rotation=25), GaussianNoise(p=1)])


class TestPosition(TaskTests):
    def make_task(self):
        return PositionRegression(TinyUNet(), SIZE, augment=MOVED)


class TestPositionWithMasking(TaskTests):
    overfit_steps = 150

    def make_task(self):
        return PositionRegression(TinyUNet(2), SIZE, mask_share=0.5, mask_block=(2, 4, 4))


class TestPositionOfCrops(TaskTests):
    def make_task(self):
        return PositionRegression(TinyUNet(), SIZE, target="crop")


class TestPositionOnTokens(TaskTests):
    def make_task(self):
        return PositionRegression(ViT("tiny", patch_size=(2, 4, 4)), SIZE)


@pytest.mark.parametrize("augment", [None, MOVED], ids=["crop", "moved"])
def test_targets_equal_those_recomputed_from_world_coordinates(augment):
    """World mm of every output voxel (affine of the result), back through the source's affine: half a voxel at most."""
    source = make_batch((14, 26, 40), batch=6)
    out, geometry = (augment or centre_crop)(source, SIZE)
    found = normalised_coordinates(source, geometry).double().numpy()
    for b in range(len(source)):
        grid = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1).reshape(-1, 3)
        index = grid + out.start[b].numpy()
        world = index @ out.affine[b, :3, :3].numpy().T + out.affine[b, :3, 3].numpy()
        inverse = np.linalg.inv(source.affine[b].numpy())
        stored = world @ inverse[:3, :3].T + inverse[:3, 3]
        shape = source.volume_shape[b].numpy()
        expected = ((stored + 0.5) / shape * 2 - 1).T.reshape(3, *SIZE)
        assert np.abs((found[b] - expected) * shape[:, None, None, None] / 2).max() < 1e-3  # voxels


def test_faces_of_the_volume_are_minus_one_and_one():
    batch = make_batch(SIZE, batch=1)
    batch = batch.replace(start=torch.zeros_like(batch.start), volume_shape=torch.tensor([SIZE]))
    _, geometry = centre_crop(batch, SIZE)
    coordinates = normalised_coordinates(batch, geometry)[0]
    for axis, n in enumerate(SIZE):
        line = coordinates[axis].movedim(axis, 0).flatten(1)[:, 0]
        torch.testing.assert_close(line[0], torch.tensor(-1 + 1 / n))
        torch.testing.assert_close(line[-1], torch.tensor(1 - 1 / n))


def test_padding_enters_no_loss_and_hidden_voxels_do_not_leak():
    task = PositionRegression(TinyUNet(), SIZE, mask_share=1.0, mask_block=(2, 4, 4))
    batch = make_batch(SIZE, padded=5)
    image, hidden = task.masked(batch)
    changed, _ = task.masked(batch.replace(image=torch.where(hidden, 99.0, batch.image)))
    assert torch.equal(image, changed) and hidden.flatten(1).float().mean(1).allclose(torch.tensor(0.6), atol=0.02)
    predicted = torch.randn((2, 3, *SIZE), requires_grad=True)
    task.locate.forward = lambda features, size: predicted
    task(batch)["loss"].backward()
    assert batch.valid is not None and predicted.grad is not None
    assert ((predicted.grad != 0) == batch.valid).all()


def test_share_of_masked_samples():
    task = PositionRegression(TinyUNet(), SIZE, mask_share=0.25, mask_block=(2, 4, 4))
    batch = make_batch(SIZE, batch=1)._map(lambda t: t.expand(400, *t.shape[1:])).replace(seed=torch.arange(400))
    _, hidden = task.masked(batch)
    assert 0.18 < hidden.flatten(1).any(1).float().mean() < 0.32


@pytest.mark.parametrize(("key", "value"), [("beta", 0.0), ("mask_share", 1.5), ("mask_ratio", 1.5)])
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(ValueError, match=f"^{key}={value}"):
        PositionRegression(TinyUNet(), SIZE, **{key: value})
