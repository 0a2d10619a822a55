"""Whole stored volumes through a network: sliding window, probabilities on the stored grid, labels on the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ssl3d.data.format import LABELS, LABELS_ORIGINAL, VALID, VOLUMES, VolumeAttributes
from ssl3d.data.normalise import resolve
from ssl3d.data.store import Store
from ssl3d.regions import RegionBatch, Size3

STORE_AXES = ("S", "P", "L")  # where the store's z, y and x index grows to
WINDOWS_A_BATCH = 2


@dataclass
class Reference:
    """A manual segmentation: `label` (Z,Y,X) on a grid of `spacing` mm, voxel (z,y,x,1) -> world mm by `affine`.

    `ignore`: value of voxels nobody annotated, or None.
    """

    label: NDArray[np.integer]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    ignore: int | None


def read_whole(store: Store, row: int, kind: str) -> NDArray[Any]:
    """A whole stored array (C,Z,Y,X)."""
    _, z, y, x = store.shape(row, kind)
    return store.read(row, (0, 0, 0), (z, y, x), kind=kind)


def read_classes(
    store: Store, row: int, classes: Iterable[int], ignore: int | None = None, unknown: int = -1
) -> NDArray[np.int64]:
    """Stored labels (Z,Y,X) as numbers from 1 on of `classes` (label values), `unknown` where `ignore`, else 0."""
    label = read_whole(store, row, LABELS)[0]
    index = np.zeros(label.shape, dtype=np.int64)
    for i, value in enumerate(classes, start=1):
        index[label == value] = i
    if ignore is not None:
        index[label == ignore] = unknown
    return index


def read_image(store: Store, row: int, normalise: str | dict[str, Any] = "auto") -> Tensor:
    """A whole stored volume (1,C,Z,Y,X), normalised float32, invalid voxels as air: what the loop shows a network."""
    numbers = resolve(normalise, store, row)
    columns = {k: torch.tensor(numbers[k], dtype=torch.float32)[None] for k in ("low", "high", "mean", "std")}
    image = read_whole(store, row, VOLUMES)
    valid = read_whole(store, row, VALID) if store.cell("has_valid", row) else None
    batch = RegionBatch(
        image=torch.from_numpy(image)[None],
        slope=torch.tensor(store.cell("scale", row), dtype=torch.float32)[None],
        intercept=torch.tensor(store.cell("offset", row), dtype=torch.float32)[None],
        start=torch.zeros(1, 3, dtype=torch.long),
        volume_shape=torch.tensor([image.shape[1:]]),
        spacing=torch.tensor([list(store.cell("spacing", row))], dtype=torch.float32),
        affine=torch.tensor(np.asarray(store.cell("affine", row), dtype=np.float64).reshape(1, 4, 4)),
        foreground_box=torch.tensor(np.asarray(store.cell("foreground_box", row)).reshape(1, 2, 3)),
        volume=torch.tensor([row]),
        seed=torch.zeros(1, dtype=torch.long),
        valid=None if valid is None else torch.from_numpy(valid.astype(bool))[None],
        **columns,
    )
    return batch.normalised().image


def original_affine(attributes: VolumeAttributes) -> NDArray[np.float64]:
    """4x4, voxel (z,y,x,1) of the original grid in the store's axes -> world mm.

    The source file's grid permuted and flipped, never rotated, so that z grows to Superior, y to Posterior, x to Left.
    """
    source = np.asarray(attributes.original_affine, dtype=np.float64)
    change = ornt_transform(io_orientation(source), axcodes2ornt(STORE_AXES))
    return source @ inv_ornt_aff(change, tuple(attributes.original_shape[:3]))


def read_reference(store: Store, row: int) -> Reference:
    """The manual segmentation of a volume on its original grid; on the stored grid where the store keeps no other."""
    attributes, info = store.attributes(row), store.label_info(row)
    kind = LABELS_ORIGINAL if store.cell("has_label_original", row) else LABELS
    affine = original_affine(attributes) if kind == LABELS_ORIGINAL else np.asarray(attributes.affine, dtype=np.float64)
    label = read_whole(store, row, kind)[0]
    spacing = tuple(float(v) for v in nib.affines.voxel_sizes(affine))
    assert len(spacing) == 3
    return Reference(label, affine, spacing, info.ignore)


def pad_to(image: Tensor, window: Size3) -> tuple[Tensor, tuple[int, int, int]]:
    """Pad (1,C,Z,Y,X) evenly to at least `window` with each channel's darkest value, as training pads with air.

    Returns the padded image and the voxels added before it, each axis.
    """
    missing = [max(0, w - n) for w, n in zip(window, image.shape[2:])]
    before = (missing[0] // 2, missing[1] // 2, missing[2] // 2)
    if not any(missing):
        return image, before
    shape = [n + m for n, m in zip(image.shape[2:], missing)]
    padded = image.amin(dim=(2, 3, 4), keepdim=True).repeat(1, 1, *shape)
    z, y, x = (slice(b, b + n) for b, n in zip(before, image.shape[2:]))
    padded[:, :, z, y, x] = image
    return padded, before


def window_starts(size: int, window: int, overlap: float) -> NDArray[np.int64]:
    """First voxels of the windows along an axis of `size` >= `window` voxels, the last one flush with the end."""
    step = max(1, int(window * (1 - overlap)))
    return np.unique(np.minimum(np.arange(0, size - window + step, step), size - window))


@torch.no_grad()
def predict(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: Size3,
    overlap: float,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Gaussian-weighted sliding window: normalised (1,C,Z,Y,X) -> outputs (K,Z,Y,X) float32 on the CPU.

    `network`: (B,C,*window) -> (B,K,*window). Volumes smaller than the window are padded with their darkest value, as
    training pads them with air, and cropped again.
    """
    size = image.shape[2:]
    padded, before = pad_to(image, window)
    out = sliding_window_inference(
        padded,
        roi_size=window,
        sw_batch_size=WINDOWS_A_BATCH,
        predictor=lambda x: network(x).float(),
        overlap=overlap,
        mode="gaussian",
        sw_device=device,
        device="cpu",
    )
    assert isinstance(out, Tensor)
    d, h, w = (slice(b, b + n) for b, n in zip(before, size))
    return out[0, :, d, h, w]


def resample(
    probabilities: NDArray[np.floating],
    affine: NDArray[np.float64],
    target_affine: NDArray[np.float64],
    shape: Sequence[int],
) -> NDArray[np.floating]:
    """(K,Z,Y,X) on the grid of `affine` -> (K,*shape) on the grid of `target_affine`, linear, edges continued.

    Probabilities are resampled and labels taken after, so that thin structures keep their sub-voxel border.
    """
    between = np.linalg.inv(affine) @ target_affine  # target voxel -> source voxel
    if tuple(shape) == probabilities.shape[1:] and np.allclose(between, np.eye(4), atol=1e-4):
        return probabilities
    off_diagonal = between[:3, :3] - np.diag(np.diag(between)[:3])
    aligned = np.abs(off_diagonal).max() * max(shape) < 1e-3  # voxels; scipy is separable, and fast, for a diagonal
    matrix = np.diag(between)[:3] if aligned else between[:3, :3]
    out = np.empty((len(probabilities), *shape), dtype=np.float32)
    for source, target in zip(probabilities, out):
        ndimage.affine_transform(source, matrix, between[:3, 3], tuple(shape), target, order=1, mode="nearest")
    return out


def to_labels(probabilities: NDArray[np.floating], classes: Sequence[int]) -> NDArray[np.uint16]:
    """(K,Z,Y,X), background first -> the label value of the likeliest class."""
    return np.asarray([0, *classes], dtype=np.uint16)[probabilities.argmax(axis=0)]
