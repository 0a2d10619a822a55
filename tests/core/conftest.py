"""A tiny store and recipe for tests of the loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl3d.config import Recipe, load
from ssl3d.testing.small_store import write_small


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> Path:
    return write_small(tmp_path_factory.mktemp("store") / "tiny.zarr")


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
