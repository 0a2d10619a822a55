"""A small labelled store of analytic shapes, runs to evaluate on it, and the smallest suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from preprocessing.geometry import canonical_grid, resampled_grid, spacing_of
from ssl3d import checkpoint
from ssl3d.data.format import LabelInfo, VolumeAttributes
from ssl3d.data.write import build_index, create_store, write_volume
from ssl3d.models.resenc import ResEncUNet
from ssl3d.testing.small_store import channel_stats

CLASSES = {0: "background", 3: "ball", 7: "rod"}  # values with gaps, as in atlases
NETWORK = {
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "kernel_sizes": [3, 3, 3],
    "strides": [1, 2, 2],
    "n_blocks_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
}


def shapes(affine: np.ndarray, shape: Sequence[int], centre: np.ndarray) -> np.ndarray:
    """Label values of two shapes fixed in the world, on any grid (z,y,x,1) -> world."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    world = grid @ affine[:3, :3].T + affine[:3, 3] - centre
    label = np.zeros(shape, dtype=np.uint8)
    label[(world**2).sum(-1) < 6.5**2] = 3
    label[(np.abs(world - [9, 0, 0]) < [2.4, 5.2, 8.1]).all(-1)] = 7
    return label


def tilted_affine(spacing: Sequence[float], degrees: float, centre: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """File order (axes to Posterior, Superior, Left), tilted: permuted, flipped and oblique at once."""
    a = np.deg2rad(degrees)
    tilt = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    axes = np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]], dtype=float)
    affine = np.eye(4)
    affine[:3, :3] = tilt @ axes @ np.diag(spacing)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def write_case(root: Path, name: str, subject: str, rng: np.random.Generator, original: bool = True) -> None:
    """A volume stored at 1.5 x 1 x 1 mm whose file has 0.8 x 3 x 1.1 mm, tilted."""
    file_shape = (40, 12, 33)
    centre = rng.uniform(-20, 20, 3)
    file_affine = tilted_affine((0.8, 3.0, 1.1), rng.uniform(-12, 12), centre, file_shape)
    shape, affine = canonical_grid(file_affine, file_shape)
    axes, stored = resampled_grid(shape, affine, (1.5, 1.0, 1.0))
    size = tuple(a.n for a in axes)
    at = centre + rng.uniform(-2, 2, 3)
    label = shapes(stored, size, at)
    image = rng.normal(300, 30, size) + 150 * (label == 3) - 120 * (label == 7)
    stats = [channel_stats(image)]
    attributes = VolumeAttributes(
        spacing=[float(v) for v in spacing_of(stored)], affine=stored.tolist(), scale=[1.0], offset=[0.0],
        modality=["mr"], original_affine=file_affine.tolist(), original_shape=list(file_shape),
        original_spacing=[0.8, 3.0, 1.1], original_orientation="PSL",
        foreground_box=[[0, 0, 0], list(size)], foreground_stats=stats, valid_stats=stats,
        subject=subject, session="", fingerprint=f"print-{name}", source=f"{name}.nii.gz",
    )  # fmt: skip
    where = {v: np.argwhere(label == v)[:200].tolist() for v in (3, 7)}
    write_volume(
        root, name, image[None].round().astype(np.int16), attributes,
        label=label[None], label_info=LabelInfo(CLASSES, None, where),
        label_original=shapes(affine, shape, at)[None] if original else None,
    )  # fmt: skip


def write_store(root: Path, patients: int, seed: int = 0, original: bool = True) -> Path:
    """`patients` patients, every third with two volumes."""
    rng = np.random.default_rng(seed)
    create_store(root)
    for p in range(patients):
        for scan in range(2 if p % 3 == 2 else 1):
            write_case(root, f"case_{p:02d}_{scan}", f"patient_{p:02d}", rng, original)
    build_index(root)
    return root


def write_run(folder: Path, seed: int = 0, network: dict | None = None, steps: int = 5, channels: int = 1) -> Path:
    """A run directory with random weights, and a seen.parquet that knows none of the store's patients."""
    torch.manual_seed(seed)
    backbone = ResEncUNet("S", channels, network or NETWORK)
    content = {
        "step": steps,
        "recipe": {"run": {"seed": seed}},
        "model": {f"backbone.{k}": v for k, v in backbone.state_dict().items()},
        "average": None,
        "exported": "backbone.",
        "backbone_spec": checkpoint.spec_to_dict(backbone.spec()),
    }
    checkpoint.save(folder, content)
    write_seen(folder, ["elsewhere"], ["someone"])
    return folder


def write_seen(folder: Path, fingerprints: Sequence[str], subjects: Sequence[str]) -> None:
    table = {"fingerprint": fingerprints, "perceptual_hash": [""] * len(fingerprints), "subject": subjects}
    pd.DataFrame(table).to_parquet(folder / "seen.parquet")


def suite_values(store: Path, split: Path, **changes) -> dict:
    """A suite of both measures, as small as it gets."""
    values = {
        "name": "tiny",
        "store": str(store),
        "split": str(split),
        "workers": 1,
        "pictures": 2,
        "measures": {
            "probe": {"n_labelled": [1, 2], "seeds": 2, "patch_size": [16, 32, 24], "voxels_per_class": 100},
            "finetune": {
                "n_labelled": [1, 2], "seeds": 2, "steps": 2, "batch_size": 2, "patch_size": [16, 16, 24],
                "optim": {"lr": [0.01, 0.001]}, "window": [16, 24, 24],
                "augment": {
                    "_target_": "ssl3d.augment.Compose",
                    "transforms": [
                        {"_target_": "ssl3d.augment.SpatialTransform", "p_rotation": 1.0},
                        {"_target_": "ssl3d.augment.GaussianNoise"},
                    ],
                },
            },
        },
    }  # fmt: skip
    return values | changes
