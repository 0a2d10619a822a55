"""Arrays, affines and files that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np


def smooth(shape: tuple[int, ...], seed: int = 0, sigma: float = 2.0) -> np.ndarray:
    """Smooth random anatomy, float32, values of some hundreds."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma, mode="nearest")
    return (500 + 300 * field / field.std()).astype(np.float32)


def oblique(spacing: tuple[float, float, float], degrees: float = 20.0) -> np.ndarray:
    """Affine (x, y, z, 1) -> world, turned about two axes."""
    a, b = np.deg2rad(degrees), np.deg2rad(degrees / 3)
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn_x @ turn_z @ np.diag(spacing)
    affine[:3, 3] = (-31.5, 12.25, 40.0)
    return affine


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write an array (x, y, z[, t]) as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path
