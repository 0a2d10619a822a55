"""A task's augmentation: at most one spatial transform, then any intensity transforms."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ssl3d.augment.intensity import IntensityTransform
from ssl3d.augment.spatial import SpatialTransform, check_fits, crop_offset, flip_crop, on_device
from ssl3d.augment.transform import Transform
from ssl3d.regions import Geometry, RegionBatch, Size3


class Compose:
    """`augment(batch, size) -> (batch, geometry)`: regions of `reach(size)` voxels in, of `size` voxels out.

    The spatial transform, wherever it stands in `transforms`, is applied first (once, so that nothing is resampled
    twice); without one, the exact centre crop is taken. The intensity transforms follow in their order. Everything
    random is drawn from `batch.seed`: a sample's result depends on no other sample of the batch.
    Raises ValueError on a second spatial transform.
    """

    def __init__(self, transforms: Sequence[Transform] = ()) -> None:
        spatial = [t for t in transforms if isinstance(t, SpatialTransform)]
        if len(spatial) > 1:
            raise ValueError(
                f"transforms: {len(spatial)} spatial transforms; write one, since each resampling blurs the image"
            )
        self.spatial = spatial[0] if spatial else None
        self.intensity = [t for t in transforms if isinstance(t, IntensityTransform)]
        if len(spatial) + len(self.intensity) != len(transforms):
            names = [type(t).__name__ for t in transforms if not isinstance(t, (SpatialTransform, IntensityTransform))]
            raise ValueError(f"transforms: {', '.join(names)} is neither a SpatialTransform nor an IntensityTransform")

    def reach(self, size: Size3) -> Size3:
        """Voxels (D,H,W) to read for an output of `size`."""
        return size if self.spatial is None else self.spatial.reach(size)

    @torch.no_grad()
    def __call__(self, batch: RegionBatch, size: Size3, view: int = 0) -> tuple[RegionBatch, Geometry]:
        """A normalised batch -> (batch of `size`, Geometry: output voxel -> voxel of the batch given).

        `view`: another number gives another draw from the same seeds (methods that compare two views of a sample).
        Raises ValueError when the batch is not normalised or smaller than `size`.
        """
        if self.spatial is not None:
            out, geometry = self.spatial(batch, size, view)
        else:
            out, geometry = centre_crop(batch, size)
        if self.intensity:
            image = out.image.clone() if self.spatial is None else out.image  # the caller's values are never changed
            for position, transform in enumerate(self.intensity):
                transform.apply_(image, out.valid, out.seed, position, view)
            out = out.replace(image=image)
        return out, geometry


def check_differ(augment: Compose, views: str, key: str = "augment") -> None:
    """Raise ValueError naming `key` when `augment` has no transform, so that the `views` it makes are all alike."""
    if augment.spatial is None and not augment.intensity:
        raise ValueError(f"{key}: without a transform {views} are the same image; list some transforms")


def centre_crop(batch: RegionBatch, size: Size3) -> tuple[RegionBatch, Geometry]:
    """The exact centre crop (a view of the same values) with its `start` moved, and its Geometry.

    Raises ValueError when the batch is not normalised or smaller than `size`.
    """
    check_fits(batch, size)
    offset = on_device(torch.tensor(crop_offset(batch.size, size)), batch.image.device)
    geometry = Geometry.identity(len(batch), size, batch.image.device)
    geometry.matrix[:, :3, 3] = offset.to(geometry.matrix.dtype)
    return flip_crop(batch, size).replace(start=batch.start + offset.to(batch.start.dtype)), geometry
