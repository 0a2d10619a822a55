"""Several crops of each sample: two large views, and smaller ones that show parts of the same region.

Source: Caron et al., "Unsupervised learning of visual features by contrasting cluster assignments", NeurIPS 2020,
section 3.2 (multi-crop).
"""

from __future__ import annotations

from ssl3d.augment import Compose, check_differ
from ssl3d.regions import RegionBatch, Size3, largest

GLOBAL = 2  # large views a sample


class MultiCrop:
    """Two crops of `global_size` voxels by one augmentation and `count` of `local_size` by another, of one region.

    Where a crop lies is its augmentation's `shift`, how much of the body it shows its `scale`.
    Raises ValueError naming the key when crops could not differ.
    """

    def __init__(
        self, global_size: Size3, local_size: Size3, global_augment: Compose, local_augment: Compose, count: int
    ) -> None:
        if count < 0:
            raise ValueError(f"local_crops={count}: at least 0")
        used = {"global_augment": global_augment} | ({"local_augment": local_augment} if count else {})
        for key, augment in used.items():
            check_differ(augment, "all crops", key)
        self.sizes = (global_size,) * GLOBAL + (local_size,) * count
        self.augments = (global_augment,) * GLOBAL + (local_augment,) * count

    def reach(self) -> Size3:
        """Voxels (D,H,W) to read for all crops of a sample."""
        return largest(augment.reach(size) for augment, size in zip(self.augments, self.sizes))

    def __call__(self, batch: RegionBatch) -> list[RegionBatch]:
        """A normalised batch -> its crops, the two global ones first; each draw differs from all others."""
        return [augment(batch, n, view)[0] for view, (augment, n) in enumerate(zip(self.augments, self.sizes))]
