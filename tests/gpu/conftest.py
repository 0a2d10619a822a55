"""Tests of what only a GPU shows. SSL3D_TEST_DEVICE=cpu runs them on the CPU too, to see that they still run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl3d.config import Recipe, load
from ssl3d.data.format import ChannelStats, VolumeAttributes
from ssl3d.data.write import build_index, create_store, write_volume

SMALL = {
    "n_stages": 3, "features_per_stage": [8, 16, 32], "n_blocks_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1], "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
}  # fmt: skip


@pytest.fixture(scope="session")
def device() -> torch.device:
    """CUDA, or what SSL3D_TEST_DEVICE names."""
    name = os.environ.get("SSL3D_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(name)


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """A store of six anisotropic volumes, every voxel its own."""
    root = tmp_path_factory.mktemp("store") / "store.zarr"
    create_store(root)
    for i in range(6):
        shape = (48, 60, 56)
        image = np.random.default_rng(i).normal(100, 40, (1, *shape)).astype(np.int16)
        image[:, 5:20, 6:30, 6:40] += 200
        low, high = (float(v) for v in np.percentile(image, [0.5, 99.5]))
        stats = [ChannelStats(image.size, 150.0, 90.0, 0.0, 500.0, low, 150.0, high, low, high, 150.0, 90.0)]
        affine = [[0, 0, -1.0, 0], [0, -1.5, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]]
        attributes = VolumeAttributes(
            spacing=[2.0, 1.5, 1.0], affine=affine, scale=[1.0], offset=[0.0], modality=["mr"],
            original_affine=affine, original_shape=list(shape), original_spacing=[2.0, 1.5, 1.0],
            original_orientation="SPL", foreground_box=[[0, 0, 0], list(shape)], foreground_stats=stats,
            valid_stats=stats, subject=f"patient{i}", session="", fingerprint=f"{i:02d}", source=f"v{i}.nii.gz",
        )  # fmt: skip
        write_volume(root, f"v{i}", image, attributes)
    build_index(root)
    return root


@pytest.fixture
def recipe(store, tmp_path):
    """recipe(*overrides) -> masked autoencoding in bfloat16 with every augmentation, in a new run directory."""

    def make(*overrides: str) -> Recipe:
        names = "SpatialTransform", "GaussianNoise", "GaussianBlur", "Brightness", "Contrast", "LowResolution", "Gamma"
        return load(
            {
                "run": {
                    "dir": str(tmp_path / "run"), "steps": 8, "precision": "bf16-mixed", "compile": False,
                    "devices": 1, "log_every": 1, "checkpoint_every": 2, "preview_every": 0, "holdout_every": 0,
                    "collapse_every": 0,
                },
                "data": {"store": str(store), "batch_size": 2, "workers": 2},
                "model": {"_target_": "ssl3d.models.resenc.ResEncUNet", "size": "S", "arch_kwargs": SMALL},
                "task": {
                    "_target_": "ssl3d.tasks.mae.MAE", "patch_size": [16, 32, 24], "mask_block": 4,
                    "augment": {
                        "_target_": "ssl3d.augment.Compose",
                        "transforms": [{"_target_": f"ssl3d.augment.{name}"} for name in names],
                    },
                },
                "optim": {"lr": 1e-3, "clip_norm": 1.0},
            },
            overrides,
        )  # fmt: skip

    return make
