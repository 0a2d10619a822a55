"""The one currency between data, augment, tasks and models: RegionSpec, RegionBatch, Geometry."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class RegionSpec:
    """What a task needs to be read for each sample.

    `size`: voxels (D, H, W) read from the store, the input enlarged by the augmentation's reach.
    `group`: consecutive samples drawn together, from distinct volumes unless `same_volume`, always in one micro-batch
    of one rank. `same_modality`: the volumes of a group share their modality. `same_volume`: they are one volume, each
    sample with a place of its own in it.
    `labels`: the batch carries `label`; only labelled volumes are sampled.
    `labelled_share`: share of samples centred on a labelled class (drawn uniformly over the classes), for supervision.
    """

    size: Size3
    group: int = 1
    same_modality: bool = False
    same_volume: bool = False
    labels: bool = False
    labelled_share: float = 0.0


@dataclass
class RegionBatch:
    """B regions of C channels, with all that is needed to place them in their volumes and in the world.

    `image` (B,C,D,H,W): int16 as stored, or float32 after `normalised()`.
    `slope, intercept` (B,C): stored -> physical; `low, high` (B,C): clip, physical; `mean, std` (B,C): physical.
    `start` (B,3): first voxel of the region in its stored volume, may be negative; `volume_shape` (B,3) voxels;
    `spacing` (B,3) mm, z y x; `affine` (B,4,4) float64: stored voxel index (z,y,x,1) -> world mm (RAS+);
    `foreground_box` (B,2,3) voxels, half-open; `volume` (B,): row in the plan;
    `seed` (B,) int64: the sample's seed, on the CPU;
    `label` (B,1,D,H,W) int64 or None; `valid` (B,1,D,H,W) bool, None when every voxel of the batch may enter a loss;
    `target` (B,T) float32 with NaN for missing, or None.
    """

    image: Tensor
    slope: Tensor
    intercept: Tensor
    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor
    start: Tensor
    volume_shape: Tensor
    spacing: Tensor
    affine: Tensor
    foreground_box: Tensor
    volume: Tensor
    seed: Tensor
    label: Tensor | None = None
    valid: Tensor | None = None
    target: Tensor | None = None

    def __len__(self) -> int:
        return self.image.shape[0]

    @property
    def size(self) -> Size3:
        """Voxels (D, H, W) of each region."""
        d, h, w = self.image.shape[2:]
        return (d, h, w)

    def replace(self, **changes: Any) -> RegionBatch:
        """A copy with some fields exchanged."""
        return dataclasses.replace(self, **changes)

    def _map(self, function: Any) -> RegionBatch:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed: dict[str, Any] = {k: None if v is None else function(v) for k, v in values.items()}
        return RegionBatch(**changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RegionBatch:
        """All tensors on `device`, but `seed`: it is read as numbers, and reading a GPU's memory waits for its work."""
        moved = self._map(lambda t: t.to(device, non_blocking=non_blocking))
        return moved.replace(seed=self.seed.cpu().clone())

    def pin_memory(self) -> RegionBatch:
        """All tensors in page-locked memory, for an asynchronous copy to a GPU."""
        return self._map(lambda t: t.pin_memory())

    def __getitem__(self, index: slice) -> RegionBatch:
        """The samples of a slice."""
        return self._map(lambda t: t[index])

    def normalised(self) -> RegionBatch:
        """The same batch with image = (clip(slope*stored + intercept, low, high) - mean) / std, float32.

        Voxels that are not valid are set to the normalised `low` (air), so that no edited or missing value is seen.
        Raises ValueError when the batch is normalised already.
        """
        if self.image.dtype.is_floating_point:
            raise ValueError("this RegionBatch is normalised already: normalised() is called once, by the loop")

        def column(x: Tensor) -> Tensor:
            return x.float()[:, :, None, None, None]

        low, mean, std = column(self.low), column(self.mean), column(self.std)
        x = self.image.float().mul_(column(self.slope)).add_(column(self.intercept))
        x = torch.minimum(torch.maximum(x, low), column(self.high)).sub_(mean).div_(std)
        if self.valid is not None:
            x = torch.where(self.valid, x, (low - mean) / std)
        return self.replace(image=x)

    def valid_mask(self) -> Tensor:
        """(B,1,D,H,W) bool, all True when `valid` is None."""
        if self.valid is not None:
            return self.valid
        return torch.ones((len(self), 1, *self.size), dtype=torch.bool, device=self.image.device)


@dataclass
class Geometry:
    """Where each voxel of an output region lies in its source region.

    `matrix` (B,4,4): output voxel index (d,h,w,1) -> source voxel index, before the displacement;
    `size`: voxels (D,H,W) of the output; `displacement` (B,3,D,H,W) source voxels (d,h,w), or None.
    Volume coordinates are the source index plus RegionBatch.start; world coordinates RegionBatch.affine of those.
    """

    matrix: Tensor
    size: Size3
    displacement: Tensor | None = None

    @classmethod
    def identity(cls, batch: int, size: Size3, device: torch.device | str = "cpu") -> Geometry:
        """The geometry of an unchanged region."""
        return cls(torch.eye(4, device=device).repeat(batch, 1, 1), size)

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def source_points(self) -> Tensor:
        """(B,D,H,W,3): the source voxel index (d,h,w) of the centre of every output voxel, in the matrix's dtype."""
        axes = [torch.arange(n, device=self.matrix.device, dtype=self.matrix.dtype) for n in self.size]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        # Spelled out: as a matmul it would run in bfloat16 under autocast, or in TF32, and lose a tenth of a voxel.
        linear, shift = self.matrix[:, None, None, None, :3, :3], self.matrix[:, None, None, None, :3, 3]
        points = shift + sum(grid[..., j, None] * linear[..., j] for j in range(3))
        if self.displacement is not None:
            points = points + self.displacement.movedim(1, -1).to(points)
        return points

    def then(self, later: Geometry) -> Geometry:
        """This geometry followed by `later` (later's source is this one's output); neither may be elastic.

        Raises ValueError on a displacement: elastic maps are drawn together with the affine, in one resampling.
        """
        if self.displacement is not None or later.displacement is not None:
            raise ValueError("elastic geometries cannot be chained: draw affine and elastic in one resampling")
        chained = (self.matrix[:, :, :, None] * later.matrix[:, None, :, :]).sum(2)  # no matmul: see source_points
        return Geometry(chained, later.size)
