"""Augmentation on the GPU: the CPU's geometry and values, and no wait for the device."""

from __future__ import annotations

import pytest
import torch

from ssl3d.augment import Brightness, Compose, Contrast, Gamma, GaussianBlur, GaussianNoise, LowResolution
from ssl3d.augment import SpatialTransform as Spatial
from ssl3d.tasks.local_contrast import LocalContrast
from ssl3d.tasks.mae import MAE
from ssl3d.testing.toys import TinyUNet, make_batch

pytestmark = pytest.mark.gpu
SIZE = (16, 32, 24)


def everything(noise: bool) -> Compose:
    always = {"p": 1.0, "p_channel": 1.0}
    spatial = Spatial(p_rotation=1, p_scale=1, elastic=4, p_elastic=1, elastic_spacing=16)
    transforms = [
        spatial, GaussianBlur(**always), Brightness(**always), Contrast(**always),
        LowResolution(**always), Gamma(**always),
    ]  # fmt: skip
    return Compose([*transforms, GaussianNoise(**always)] if noise else transforms)


def test_gpu_and_cpu_agree(device):
    augment = everything(noise=False)
    batch = make_batch(augment.reach(SIZE), batch=4, channels=2, padded=9, labels=True)
    here, geometry = augment(batch, SIZE)
    moved, there_geometry = augment(batch.to(device), SIZE)
    there = moved.to("cpu")
    torch.testing.assert_close(there_geometry.matrix.cpu(), geometry.matrix, rtol=0, atol=1e-5)
    torch.testing.assert_close(there_geometry.source_points().cpu(), geometry.source_points(), rtol=0, atol=1e-4)
    torch.testing.assert_close(there.affine, here.affine, rtol=0, atol=1e-6)
    # A point half-way between two voxels may round either way: a few voxels may differ.
    assert (there.valid != here.valid).float().mean() < 1e-4
    assert (there.label != here.label).float().mean() < 1e-4
    both = (there.valid & here.valid).expand_as(here.image)
    far = (there.image - here.image).abs()[both] > 1e-3
    assert far.float().mean() < 1e-4


def test_tf32_and_autocast_leave_the_geometry_alone(device):
    augment = Compose([Spatial(p_rotation=1, p_scale=1, elastic=4, p_elastic=1, elastic_spacing=16)])
    batch = make_batch(augment.reach(SIZE), batch=2).to(device)
    plain, geometry = augment(batch, SIZE)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast(device.type, torch.bfloat16):
            fast, fast_geometry = augment(batch, SIZE)
            points = fast_geometry.source_points()
    finally:
        torch.set_float32_matmul_precision(precision)
    assert torch.equal(points, geometry.source_points()) and torch.equal(fast.image, plain.image)


def test_a_sample_depends_on_its_seed_alone(device):
    augment = everything(noise=True)
    batch = make_batch(augment.reach(SIZE), batch=4, padded=5)
    together, _ = augment(batch.to(device), SIZE)
    alone, _ = augment(batch[2:3].to(device), SIZE)
    assert torch.equal(alone.image[0], together.image[2])


@pytest.mark.parametrize("method", ["MAE", "LocalContrast"])
def test_a_step_never_waits_for_the_device(device, method):
    if device.type != "cuda":
        pytest.skip("only a GPU runs ahead of its host")
    augment = everything(noise=True)
    if method == "MAE":
        task = MAE(TinyUNet(), SIZE, mask_block=4, augment=augment).to(device)
    else:
        task = LocalContrast(TinyUNet(), SIZE, augment, scale=0, local_pairs="LD", hidden_dim=16).to(device)
    batch = make_batch(task.region.size, padded=3).to(device)
    task(batch)["loss"].backward()  # the first pass may set up workspaces
    torch.cuda.set_sync_debug_mode("error")
    try:
        task(batch)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
