"""What can be known of a volume file without its voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Header:
    """`shape` (X, Y, Z) in file order, `frames` volumes in the file, `affine` 4x4 (x, y, z, 1) -> world mm RAS+."""

    shape: tuple[int, int, int]
    frames: int
    affine: np.ndarray
