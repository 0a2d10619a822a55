"""Plans as nnU-Net writes them, and small networks to export."""

import json

import pytest

from ssl3d.models.resenc import ResEncUNet
from ssl3d.testing.backbone import randomise

SMALL = {"features_per_stage": [4, 6, 8, 10], "n_blocks_per_stage": [1, 2, 1, 1], "strides": [1, 2, [1, 2, 2], 2]}


@pytest.fixture
def backbone():
    """A small ResEncUNet with anisotropic strides (total 4, 8, 8) and random weights."""
    network = ResEncUNet("S", arch_kwargs=SMALL)
    return randomise(network).eval()


@pytest.fixture
def plans_file(tmp_path):
    """A function that writes a plans file for `channels` channels and returns its path."""

    def write(channels: int = 1, transpose=(0, 1, 2), name: str = "nnUNetResEncUNetLPlans.json"):
        content = {
            "dataset_name": "Dataset004_Hippocampus",
            "plans_name": "nnUNetResEncUNetLPlans",
            "transpose_forward": list(transpose),
            "foreground_intensity_properties_per_channel": {
                str(c): {
                    "mean": 50.0,
                    "std": 9.0,
                    "percentile_00_5": 1.0,
                    "percentile_99_5": 99.0,
                    "median": float("nan"),
                }
                for c in range(channels)
            },
            "configurations": {
                "2d": {"patch_size": [64, 56], "batch_size": 300},
                "3d_fullres": {
                    "data_identifier": "nnUNetPlans_3d_fullres",
                    "patch_size": [37, 56, 40],
                    "batch_size": 9,
                    "spacing": [1.0, 1.0, 2.0],
                    "median_image_size_in_voxels": [36.0, 50.0, 20.0],
                    "normalization_schemes": ["CTNormalization"] * channels,
                    "architecture": {"network_class_name": "PlainConvUNet"},
                },
            },
        }
        path = tmp_path / name
        path.write_text(json.dumps(content, indent=4))
        return path

    return write
