"""A small store of noise with a brighter box in every volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ssl3d.data.write import build_index, channel_stats, create_store, write_volume
from ssl3d.testing.store import plain_attributes


def write_small(root: Path, volumes: int = 6, shape: tuple[int, int, int] = (20, 26, 30), seed: int = 0) -> Path:
    """A store of `volumes` MR volumes (Z,Y,X) of 2 x 1.5 x 1 mm, a subject each."""
    rng = np.random.default_rng(seed)
    create_store(root)
    box = tuple(slice(n // 4, 3 * n // 4) for n in shape)
    affine = [[0, 0, -1.0, 0], [0, -1.5, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]]
    for i in range(volumes):
        image = rng.normal(100, 40, (1, *shape)).astype(np.int16)
        image[(slice(None), *box)] += 200
        stats = [channel_stats(image.astype(np.float64))]
        own: dict[str, Any] = {
            "spacing": [2.0, 1.5, 1.0], "affine": affine, "original_affine": affine, "modality": ["mr"],
            "original_spacing": [1.0, 1.5, 2.0], "foreground_stats": stats, "valid_stats": stats,
            "subject": f"patient{i}", "session": "", "fingerprint": f"{seed:02d}{i:02d}", "source": f"v{i}.nii.gz",
        }  # fmt: skip
        write_volume(root, f"v{i}", image, plain_attributes(image, **own))
    build_index(root)
    return root
