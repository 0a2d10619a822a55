"""Compose: order, refusals, recipes."""

from __future__ import annotations

import pytest
import torch

from ssl3d import schema
from ssl3d.augment import Compose, Gamma, GaussianNoise, SpatialTransform, Transform
from ssl3d.testing.toys import make_batch


def test_refuses_a_second_resampling_and_strangers():
    with pytest.raises(ValueError, match="2 spatial transforms"):
        Compose([SpatialTransform(), GaussianNoise(), SpatialTransform()])
    with pytest.raises(ValueError, match="Transform is neither"):
        Compose([Transform()])


def test_refuses_a_region_too_small_and_raw_values():
    batch = make_batch((8, 16, 12))
    for augment in (Compose(), Compose([SpatialTransform()])):
        with pytest.raises(ValueError, match="reach"):
            augment(batch, (8, 16, 16))
        with pytest.raises(ValueError, match="normalised"):
            augment(batch.replace(image=batch.image.short()), (8, 16, 12))


def test_spatial_then_intensity_whatever_the_order_written():
    spatial, gamma = SpatialTransform(p_rotation=1, p_scale=1), Gamma(p=1)
    batch = make_batch(spatial.reach((8, 16, 12)))
    one, _ = Compose([spatial, gamma])(batch, (8, 16, 12))
    other, _ = Compose([gamma, spatial])(batch, (8, 16, 12))
    assert torch.equal(one.image, other.image)
    assert Compose([gamma, spatial]).reach((8, 16, 12)) == batch.size and Compose([gamma]).reach((8, 9, 7)) == (8, 9, 7)


def test_centre_crop_keeps_its_place():
    batch = make_batch((9, 20, 14), labels=True, padded=6)
    out, geometry = Compose()(batch, (4, 16, 10))
    assert out.size == (4, 16, 10) and out.label is not None and out.valid is not None
    assert out.label.shape == out.valid.shape == (2, 1, 4, 16, 10)
    assert torch.equal(out.start, batch.start + torch.tensor([2, 2, 2]))
    assert torch.equal(geometry.matrix[:, :3, 3], torch.full((2, 3), 2.0)) and torch.equal(out.affine, batch.affine)


def test_builds_from_a_recipe():
    node = {
        "_target_": "ssl3d.augment.Compose",
        "transforms": [
            {"_target_": "ssl3d.augment.SpatialTransform", "rotation": 15, "scale": [0.8, 1.25], "flip_axes": [2]},
            {"_target_": "ssl3d.augment.GaussianNoise", "std": [0, 0.05]},
        ],
    }
    completed, faults = schema.check_target(node, Compose, "task.augment")
    assert not faults
    augment = schema.build(completed)
    assert augment.spatial.scale == (0.8, 1.25) and augment.spatial.flip_axes == (2,) and len(augment.intensity) == 1
    node["transforms"][1]["sdt"] = 1  # type: ignore[index]
    _, faults = schema.check_target(node, Compose, "task.augment")
    assert faults and "sdt" in faults[0] and "std" in faults[0]
