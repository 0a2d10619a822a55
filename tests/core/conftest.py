"""A tiny store and recipe for tests of the loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssl3d.config import Recipe, load
from ssl3d.data.format import ChannelStats, VolumeAttributes
from ssl3d.data.write import build_index, create_store, write_volume


def channel_stats(values: np.ndarray) -> ChannelStats:
    low, middle, high = (float(v) for v in np.percentile(values, [0.5, 50, 99.5]))
    clipped = np.clip(values, low, high)
    return ChannelStats(
        values.size, float(values.mean()), float(values.std()), float(values.min()), float(values.max()),
        low, middle, high, low, high, float(clipped.mean()), float(clipped.std()),
    )  # fmt: skip


def write_tiny(root: Path, volumes: int = 6, shape=(20, 26, 30), seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    create_store(root)
    for i in range(volumes):
        image = rng.normal(100, 40, (1, *shape)).astype(np.int16)
        image[:, 5:15, 6:20, 6:20] += 200
        stats = [channel_stats(image.astype(np.float64))]
        affine = [[0, 0, -1.0, 0], [0, -1.5, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]]
        attributes = VolumeAttributes(
            spacing=[2.0, 1.5, 1.0], affine=affine, scale=[1.0], offset=[0.0], modality=["mr"],
            original_affine=affine, original_shape=list(shape), original_spacing=[2.0, 1.5, 1.0],
            original_orientation="SPL", foreground_stats=stats,
            foreground_box=[[0, 0, 0], list(shape)],
            valid_stats=stats, subject=f"patient{i}", session="",
            fingerprint=f"{seed:02d}{i:02d}", source=f"v{i}.nii.gz",
        )  # fmt: skip
        write_volume(root, f"v{i}", image, attributes)
    build_index(root)
    return root


@pytest.fixture
def write_store():
    """write_store(root, volumes, shape, seed) -> a tiny store."""
    return write_tiny


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("store") / "tiny.zarr")


@pytest.fixture
def tiny(tiny_store, tmp_path):
    """tiny(*overrides) -> a recipe over the tiny store, in a new run directory."""

    def make(*overrides: str) -> Recipe:
        transforms = [{"_target_": "ssl3d.augment.SpatialTransform"}, {"_target_": "ssl3d.augment.GaussianNoise"}]
        return load(
            {
                "run": {
                    "dir": str(tmp_path / "run"), "steps": 8, "precision": "32-true", "log_every": 3,
                    "checkpoint_every": 2, "preview_every": 0, "holdout_every": 0, "collapse_every": 0,
                },
                "data": {"store": str(tiny_store), "batch_size": 2, "workers": 0},
                "model": {
                    "_target_": "ssl3d.models.resenc.ResEncUNet",
                    "arch_kwargs": {
                        "n_stages": 2, "features_per_stage": [4, 8], "n_blocks_per_stage": [1, 1],
                        "n_conv_per_stage_decoder": [1], "kernel_sizes": [[3, 3, 3]] * 2,
                        "strides": [[1, 1, 1], [2, 2, 2]],
                    },
                },
                "task": {
                    "_target_": "ssl3d.tasks.mae.MAE", "patch_size": [8, 16, 12], "mask_block": 4,
                    "augment": {"_target_": "ssl3d.augment.Compose", "transforms": transforms},
                },
                "optim": {"lr": 1e-2, "weight_decay": 1e-2, "warmup_steps": 2},
            },
            overrides,
        )  # fmt: skip

    return make
