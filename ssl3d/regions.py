"""The one currency between data, augment, tasks and models: RegionSpec, RegionBatch, Geometry (with Elastic)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

Size3 = tuple[int, int, int]


def size3(values: Iterable[int]) -> Size3:
    """Three numbers (D, H, W) as a tuple of plain ints. Raises ValueError when there are not three."""
    d, h, w = (int(v) for v in values)
    return (d, h, w)


def largest(sizes: Iterable[Size3]) -> Size3:
    """The least size (D,H,W) that holds all of these."""
    return size3(max(axis) for axis in zip(*sizes))


@dataclass(frozen=True)
class RegionSpec:
    """What a task needs to be read for each sample.

    `size`: voxels (D, H, W) read from the store, the input enlarged by the augmentation's reach.
    `group`: consecutive samples drawn together, from distinct volumes unless `same_volume`, always in one micro-batch
    of one rank. `same_modality`: the volumes of a group share their modality. `same_volume`: they are one volume, each
    sample with a place of its own in it.
    `images`: False leaves the image all zeros, and nothing is read for it: for tasks that make their own.
    `labels`: the batch carries `label`; only labelled volumes are sampled. With `images` False what a volume's ignore
    value marks is not valid: there is nothing to see there.
    `labelled_share`: share of samples centred on a labelled class (drawn uniformly over the classes), for supervision.
    `labelled_slices`: {volume: (axis, slices)} that alone are annotated (None: all voxels are): classes are looked for
    in these slices; what else the stored labels say is the task's to ignore.
    """

    size: Size3
    group: int = 1
    same_modality: bool = False
    same_volume: bool = False
    images: bool = True
    labels: bool = False
    labelled_share: float = 0.0
    labelled_slices: Mapping[int, tuple[int, tuple[int, ...]]] | None = None


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
class Elastic:
    """A smooth displacement: uniform cubic B-splines over a lattice of control points (a free-form deformation).

    `control` (B,3,gD,gH,gW): displacements (d,h,w) of the control points in output voxels; `step`: output voxels
    between them (D,H,W). Known in closed form at every point, so that labels follow it exactly. No displacement exceeds
    the largest of its control points, and while that is at most LIMIT steps the map x -> x + displacement never folds
    and `undo` converges: neighbours then move by less than 0.62 of their distance against one another.
    Sources: Rueckert et al., IEEE Transactions on Medical Imaging 1999 (the splines); Choi and Lee, Graphical Models
    2000 (in 3D it is injective below step / 2.48).
    """

    control: Tensor
    step: tuple[float, float, float]

    LIMIT: ClassVar[float] = 0.25
    UNDO_STEPS: ClassVar[int] = 12  # leaves less than 0.62 ** 12, a 300th, of the largest displacement

    @staticmethod
    def lattice(size: Size3, step: tuple[float, float, float]) -> Size3:
        """Control points (D,H,W) that hold an output of `size` voxels, its outer faces included."""
        d, h, w = (math.floor(n / s) + 4 for n, s in zip(size, step))
        return (d, h, w)

    def _taps(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Voxel coordinates (...) along an axis -> the first of four control points, and their weights (...,4)."""
        count = self.control.shape[2 + axis]
        place = ((x + 0.5) / self.step[axis]).clamp(0, count - 3)  # beyond the lattice the displacement stays
        first = place.floor().clamp(max=count - 4)
        t = place - first
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        return first.long(), torch.stack(weights, dim=-1) / 6

    def at(self, points: Tensor) -> Tensor:
        """(B,...,3) output voxels -> their displacement, in the dtype of the points."""
        flat = points.reshape(len(points), -1, 3)
        (d, wd), (h, wh), (w, ww) = (self._taps(flat[..., axis], axis) for axis in range(3))
        four = torch.arange(4, device=points.device)
        _, _, depth, height, width = self.control.shape
        d, h, w = d[..., None] + four, h[..., None] + four, w[..., None] + four
        index = ((d[..., :, None, None] * height + h[..., None, :, None]) * width + w[..., None, None, :]).flatten(1)
        weight = (wd[..., :, None, None] * wh[..., None, :, None] * ww[..., None, None, :]).flatten(2)
        control = self.control.to(points.dtype).view(-1, 3, depth * height * width)
        values = control.gather(2, index[:, None].expand(-1, 3, -1)).unflatten(2, (-1, 64))
        return (values * weight[:, None]).sum(-1).transpose(1, 2).view(points.shape)

    def on_grid(self, size: Size3) -> Tensor:
        """(B,D,H,W,3): the displacement of every voxel of an output, an axis at a time."""
        field = self.control
        for axis, n in enumerate(size):
            x = torch.arange(n, device=field.device, dtype=field.dtype)
            first, weights = self._taps(x, axis)
            shape = [n if i == axis + 2 else 1 for i in range(5)]
            # Sums and products, no convolution: that would run in bfloat16 under autocast, or in TF32.
            field = sum(
                (field.index_select(axis + 2, first + k) * weights[:, k].view(shape) for k in range(4)),
                start=torch.zeros((), device=field.device, dtype=field.dtype),
            )
        return field.movedim(1, -1)

    def undo(self, points: Tensor) -> Tensor:
        """The x with x + displacement(x) = points (B,...,3), to a 300th of the largest displacement or far better."""
        x = points
        for _ in range(self.UNDO_STEPS):
            x = points - self.at(x)
        return x


@dataclass
class Geometry:
    """Where each voxel of an output region lies in its source region: source = matrix @ (output + elastic(output)).

    `matrix` (B,4,4): voxel index (d,h,w,1) -> source voxel index; `size`: voxels (D,H,W) of the output; `elastic`: a
    displacement of output voxels before the matrix, or None: the affine part stays an affine whatever the deformation.
    Volume coordinates are the source index plus RegionBatch.start; world coordinates RegionBatch.affine of those
    (start and affine of the batch the geometry points into).
    """

    matrix: Tensor
    size: Size3
    elastic: Elastic | None = None

    @classmethod
    def identity(cls, batch: int, size: Size3, device: torch.device | str = "cpu") -> Geometry:
        """The geometry of an unchanged region."""
        return cls(torch.eye(4, device=device).repeat(batch, 1, 1), size)

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def __getitem__(self, index: slice) -> Geometry:
        """The samples of a slice."""
        elastic = None if self.elastic is None else Elastic(self.elastic.control[index], self.elastic.step)
        return Geometry(self.matrix[index], self.size, elastic)

    def _affine(self, points: Tensor) -> Tensor:
        """The matrix applied to (B,...,3)."""
        view = (len(self), *[1] * (points.dim() - 2), 3)
        # Spelled out: as a matmul it would run in bfloat16 under autocast, or in TF32, and lose a tenth of a voxel.
        columns = [self.matrix[:, :3, j].to(points.dtype).view(view) for j in range(4)]
        return columns[3] + sum(points[..., j, None] * columns[j] for j in range(3))

    def to_source(self, points: Tensor) -> Tensor:
        """(B,...,3) output voxels (d,h,w), fractions too -> source voxels, in the dtype of the points."""
        return self._affine(points if self.elastic is None else points + self.elastic.at(points))

    def to_output(self, points: Tensor) -> Tensor:
        """(B,...,3) source voxels -> the output voxels that show them, inside the output or not: undoes `to_source`."""
        linear, shift = self.matrix[:, :3, :3].double(), self.matrix[:, :3, 3].double()
        a, b, c = linear.unbind(1)
        # By cofactors: a solver would wait for the device to see whether the matrix was singular.
        cofactors = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=2)
        inverse = torch.eye(4, dtype=linear.dtype, device=linear.device).repeat(len(self), 1, 1)
        inverse[:, :3, :3] = cofactors / (a * cofactors[:, :, 0]).sum(1)[:, None, None]
        inverse[:, :3, 3] = -(inverse[:, :3, :3] * shift[:, None]).sum(2)
        found = Geometry(inverse, self.size).to_source(points)
        return found if self.elastic is None else self.elastic.undo(found)

    def source_points(self) -> Tensor:
        """(B,D,H,W,3): the source voxel index (d,h,w) of the centre of every output voxel, in the matrix's dtype."""
        axes = [torch.arange(n, device=self.matrix.device, dtype=self.matrix.dtype) for n in self.size]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)[None]
        if self.elastic is not None:
            grid = grid + self.elastic.on_grid(self.size).to(grid)
        return self._affine(grid)

    def then(self, later: Geometry) -> Geometry:
        """This geometry followed by `later` (later's source is this one's output); only `later` may be elastic.

        Raises ValueError when this one is elastic: elastic and affine are drawn together, in one resampling.
        """
        if self.elastic is not None:
            raise ValueError("nothing can follow an elastic geometry: draw affine and elastic in one resampling")
        chained = (self.matrix[:, :, :, None] * later.matrix[:, None, :, :]).sum(2)  # no matmul: see _affine
        return Geometry(chained, later.size, later.elastic)
