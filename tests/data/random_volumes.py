"""Small random volumes for the tests of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ssl3d.data.format import CT_WINDOW, ChannelStats, LabelInfo, VolumeAttributes
from ssl3d.data.write import write_volume

SHAPES = ((40, 70, 33), (64, 48, 96), (37, 32, 65), (50, 60, 70))


def statistics(values: np.ndarray, modality: str) -> ChannelStats:
    """The statistics of physical `values`, as the conversion records them."""
    values = values.astype(np.float64)
    p = np.percentile(values, (0.5, 50, 99.5))
    low, high = CT_WINDOW if modality == "ct" else (p[0], p[2])
    clipped = np.clip(values, low, high)
    return ChannelStats(
        count=values.size, mean=values.mean(), std=values.std(), minimum=values.min(), maximum=values.max(),
        percentile_00_5=p[0], percentile_50=p[1], percentile_99_5=p[2], low=low, high=high,
        clipped_mean=clipped.mean(), clipped_std=clipped.std(),
    )  # fmt: skip


def volume_attributes(image: np.ndarray, **changes: Any) -> VolumeAttributes:
    """Attributes of a random image (C,Z,Y,X): 3 x 1.5 x 0.8 mm, everything foreground but a margin of two voxels."""
    c, *shape = image.shape
    modality = changes.pop("modality", ["ct"] * c)
    scale, offset = changes.pop("scale", [1.0] * c), changes.pop("offset", [0.0] * c)
    box = changes.pop("foreground_box", [[2, 2, 2], [n - 2 for n in shape]])
    stats = [statistics(s * channel + o, m) for channel, s, o, m in zip(image, scale, offset, modality)]
    affine = [[0, 0, -0.8, 10.0], [0, -1.5, 0, 20.0], [3.0, 0, 0, -30.0], [0, 0, 0, 1.0]]
    values: dict[str, Any] = {
        "spacing": [3.0, 1.5, 0.8], "affine": affine, "scale": scale, "offset": offset, "modality": modality,
        "original_affine": np.diag([-0.8, -1.5, 3.0, 1.0]).tolist(), "original_shape": shape[::-1],
        "original_spacing": [0.8, 1.5, 3.0], "original_orientation": "LPS", "foreground_box": box,
        "foreground_stats": stats, "valid_stats": stats, "subject": "subject", "session": "1",
        "fingerprint": f"{abs(hash(image.tobytes())):x}", "source": "scan.nii.gz",
    }  # fmt: skip
    return VolumeAttributes(**{**values, **changes})


def random_image(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """(C,Z,Y,X) int16 in [-1000, 2000), every voxel its own."""
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)


def add_volume(root: Path, volume_id: str, seed: int, shape: tuple[int, int, int], **options: Any) -> np.ndarray:
    """Write one random volume; returns its image. Options: channels, labels, valid, and any attribute."""
    image = random_image((options.pop("channels", 1), *shape), seed)
    label = info = None
    if options.pop("labels", False):
        label = ((image[:1] > 500).astype(np.uint8) + (image[:1] > 1500)).astype(np.uint8)
        where = {k: np.argwhere(label[0] == k)[:: max(1, label.size // 1000)].tolist() for k in (0, 1, 2)}
        info = LabelInfo({0: "background", 1: "organ", 2: "tumour"}, options.pop("ignore", None), where)
    valid = None
    if options.pop("valid", False):
        valid = np.ones((1, *shape), dtype=np.uint8)
        valid[:, :, :3] = 0
    attributes = volume_attributes(image, **options)
    write_volume(root, volume_id, image, attributes, label=label, label_info=info, valid=valid)
    return image
