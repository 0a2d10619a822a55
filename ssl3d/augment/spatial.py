"""Flips, rotation, anisotropic scaling and elastic deformation of whole batches, on their device, in one resampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl3d.augment.transform import Transform, check_probability, check_range
from ssl3d.regions import Elastic, Geometry, RegionBatch, Size3
from ssl3d.seeding import torch_generators


@dataclass(frozen=True)
class Draw:
    """Spatial parameters of a batch, on the CPU: `angles` (B,3) radians, `scale` (B,3), `flips` (B,3) of +-1.

    `shift` (B,3): of the crop's centre, -1 to 1 times the largest. `resample[b]` is False when sample b only flips and
    shifts, so that it is copied voxel by voxel, never interpolated.
    """

    angles: Tensor
    scale: Tensor
    flips: Tensor
    shift: Tensor
    resample: list[bool]


class SpatialTransform(Transform):
    """Random flips, rotations, scalings and elastic deformations of a region, then a centre crop: one resampling.

    Rotation is rigid in millimetres: anisotropic voxels are rotated in the world, not in index space.
    `flip_axes`: axes (0 z, 1 y, 2 x) that are flipped, each with probability `p_flip`.
    `rotation`: largest angle in degrees about z, y, x (one number for all three), each uniform in +-, with
    probability `p_rotation` for the sample. `scale`: factor on the edge of a voxel, so 1.25 shows 1.25 times the
    extent (nnU-Net's convention), log-uniform in [low, high], with probability `p_scale` for the sample; with
    probability `p_axis_scale` each axis then draws its own. `shift`: how far the crop's centre is moved at most, as a
    share of the output's edge (one number for all axes, or three), uniform in +-, whole voxels: views of a sample then
    lie at places of their own. `elastic`: largest displacement, mm in the patient, an axis; control points
    `elastic_spacing` mm apart are displaced uniformly in +-, with probability `p_elastic` for the sample, and cubic
    B-splines run between them (most voxels move by a third of the largest or less). At most a quarter of
    `elastic_spacing`, also where voxels are finer than planned, so that the map never folds. `spacing`: mm (z, y, x)
    of the voxels this is planned for; `reach` and the distance of control points use it. `max_reach`: a region is read
    at most this many times larger than the output, an axis; what a rare large change asks for beyond it is outside
    (valid False, air).

    Raises ValueError naming the key when a value is out of its range. Defaults after nnU-Net's training augmentation
    (Isensee et al., Nature Methods 2021, supplementary note 4).
    """

    def __init__(
        self,
        flip_axes: Sequence[int] = (0, 1, 2),
        p_flip: float = 0.5,
        rotation: float | tuple[float, float, float] = 30.0,
        p_rotation: float = 0.2,
        scale: tuple[float, float] = (0.7, 1.4),
        p_scale: float = 0.2,
        p_axis_scale: float = 0.4,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        max_reach: float = 1.5,
        shift: float | tuple[float, float, float] = 0.0,
        elastic: float = 0.0,
        p_elastic: float = 0.2,
        elastic_spacing: float = 32.0,
    ) -> None:
        self.flip_axes = tuple(flip_axes)
        if len(set(self.flip_axes)) != len(self.flip_axes) or not set(self.flip_axes) <= {0, 1, 2}:
            raise ValueError(f"flip_axes={list(flip_axes)}: list each of 0 (z), 1 (y), 2 (x) at most once")
        degrees = (rotation,) * 3 if isinstance(rotation, (int, float)) else tuple(rotation)
        if len(degrees) != 3 or not all(0 <= d <= 180 for d in degrees):
            raise ValueError(f"rotation={rotation}: write degrees between 0 and 180, one number or three (z, y, x)")
        if len(spacing) != 3 or not all(s > 0 for s in spacing):
            raise ValueError(f"spacing={list(spacing)}: write three positive numbers, mm (z, y, x)")
        if max_reach < 1:
            raise ValueError(f"max_reach={max_reach}: at least 1 (the output itself must be read)")
        self.rotation = tuple(math.radians(d) for d in degrees)
        shares = (shift,) * 3 if isinstance(shift, (int, float)) else tuple(shift)
        if len(shares) != 3 or not all(0 <= s <= 10 for s in shares):
            raise ValueError(f"shift={shift}: write shares of the output's edge from 0 to 10, one number or three")
        self.shift = (float(shares[0]), float(shares[1]), float(shares[2]))
        self.scale = check_range("scale", scale, minimum=0.01, maximum=100)
        self.p_flip = check_probability("p_flip", p_flip)
        self.p_rotation = check_probability("p_rotation", p_rotation)
        self.p_scale = check_probability("p_scale", p_scale)
        self.p_axis_scale = check_probability("p_axis_scale", p_axis_scale)
        self.spacing = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        self.max_reach = float(max_reach)
        if elastic_spacing <= 0:
            raise ValueError(f"elastic_spacing={elastic_spacing}: mm between control points, must be positive")
        if not 0 <= elastic <= Elastic.LIMIT * elastic_spacing:
            raise ValueError(
                f"elastic={elastic}: write mm from 0 to a quarter of elastic_spacing={elastic_spacing}, beyond which "
                "the deformation could fold"
            )
        self.p_elastic = check_probability("p_elastic", p_elastic)
        self.elastic = float(elastic) if self.p_elastic > 0 else 0.0
        d, h, w = (elastic_spacing / s for s in self.spacing)
        self.elastic_step = (d, h, w)  # voxels between control points

    def reach(self, size: Size3) -> Size3:
        """Voxels (D,H,W) to read so that no rotation, scale or deformation leaves it, up to `max_reach` times `size`.

        The excess is even on every axis, so that centres coincide and flips stay exact.
        """
        spacing = np.asarray(self.spacing)
        half = np.asarray(size) / 2 * spacing * (self.scale[1] if self.p_scale > 0 else 1.0) + self.elastic
        # The extreme of |R| times half need not lie at the largest angle (45 degrees is the worst of 0..90): search.
        steps = [np.linspace(0, angle, 7) if self.p_rotation > 0 else np.zeros(1) for angle in self.rotation]
        signs = itertools.product((1, -1), repeat=3)
        angles = np.array([np.multiply(a, s) for s in signs for a in itertools.product(*steps)])
        extent = (rotation_matrices(torch.from_numpy(angles)).abs().numpy() @ half).max(0) / spacing
        edge = np.asarray(size)
        margin = np.minimum(np.maximum(extent - edge / 2, 0) + self.shift * edge, (self.max_reach - 1) * edge / 2)
        d, h, w = (n + 2 * math.ceil(m - 1e-6) for n, m in zip(size, margin))
        return (d, h, w)

    def draw(self, seeds: Tensor, view: int = 0) -> Draw:
        """The parameters of each sample, a function of its seed (B,) and the view alone."""
        rows = []
        for generator in torch_generators(seeds, "spatial", view):
            # Always the same number of draws in the same order: changing one probability leaves the others' draws.
            u = torch.rand(15, generator=generator, dtype=torch.float64).tolist()
            flips = [-1.0 if axis in self.flip_axes and u[axis] < self.p_flip else 1.0 for axis in range(3)]
            rotate, zoom, apart = u[3] < self.p_rotation, u[4] < self.p_scale, u[5] < self.p_axis_scale
            angles = [(2 * v - 1) * a if rotate else 0.0 for v, a in zip(u[6:9], self.rotation)]
            low, high = math.log(self.scale[0]), math.log(self.scale[1])
            powers = u[9:12] if apart else [u[12]] * 3
            scale = [math.exp(low + v * (high - low)) if zoom else 1.0 for v in powers]
            moved = (2 * torch.rand(3, generator=generator, dtype=torch.float64) - 1).tolist()
            rows.append([angles, scale, flips, moved])
        drawn = torch.tensor(rows, dtype=torch.float64)  # (B, 4 kinds, 3 axes)
        interpolate = (drawn[:, 0] != 0).any(1) | (drawn[:, 1] != 1).any(1)
        return Draw(drawn[:, 0], drawn[:, 1], drawn[:, 2], drawn[:, 3], interpolate.tolist())

    def offsets(self, draw: Draw, source: Size3, size: Size3) -> Tensor:
        """(B,3) int64 on the CPU: first source voxel of each shifted crop, never outside the source."""
        centred = torch.tensor(crop_offset(source, size))
        most = torch.tensor([min(s * n, c) for s, n, c in zip(self.shift, size, centred.tolist())], dtype=torch.float64)
        return centred + (draw.shift * most).round().long()

    def draw_elastic(self, seeds: Tensor, size: Size3, view: int = 0) -> tuple[Tensor, list[bool]] | None:
        """(B,3,gD,gH,gW) on the CPU, -1 to 1 times the largest displacement, and which samples are deformed.

        None when `elastic` is 0. A stream of its own: turning it on leaves the draws of `draw` as they are.
        """
        if self.elastic == 0:
            return None
        lattice = Elastic.lattice(size, self.elastic_step)
        chosen, moved = [], []
        for generator in torch_generators(seeds, "elastic", view):
            chosen.append(torch.rand((), generator=generator).item() < self.p_elastic)
            drawn = 2 * torch.rand((3, *lattice), generator=generator) - 1
            moved.append(drawn if chosen[-1] else torch.zeros_like(drawn))
        return torch.stack(moved), chosen

    def displacement(self, drawn: Tensor, draw: Draw, batch: RegionBatch) -> Elastic:
        """What `draw_elastic` drew, in output voxels: mm over the edge of one, but never so much that it folds."""
        device = batch.image.device
        edge = batch.spacing.float() * on_device(draw.scale.float(), device)  # mm of an output voxel
        limit = on_device(Elastic.LIMIT * torch.tensor(self.elastic_step), device)
        most = torch.minimum(self.elastic / edge, limit)
        return Elastic(on_device(drawn, device) * most[:, :, None, None, None], self.elastic_step)

    @torch.no_grad()
    def __call__(self, batch: RegionBatch, size: Size3, view: int = 0) -> tuple[RegionBatch, Geometry]:
        """A normalised batch -> its regions of `size`, and where their voxels lie in the regions given.

        Image linear, label and valid nearest, one geometry for all three. What lies outside the given region is
        valid False and air. The result's `affine`, `start` and `spacing` place it in the world as before
        (affine @ (start + index) is the world position in mm, with start = 0), but for an elastic deformation, which
        no affine holds: geometry.to_source has it. `volume_shape` and `foreground_box` still describe the stored
        volume, to be compared with geometry.source_points() + the given batch's start.
        Raises ValueError when the region is smaller than `size`.
        """
        check_fits(batch, size)
        draw = self.draw(batch.seed, view)
        offsets = self.offsets(draw, batch.size, size)
        matrix = matrices(draw, batch, size, offsets)
        geometry, interpolate = Geometry(matrix.float(), size), draw.resample
        drawn = self.draw_elastic(batch.seed, size, view)
        if drawn is not None:
            geometry.elastic = self.displacement(drawn[0], draw, batch)
            interpolate = [turned or deformed for turned, deformed in zip(draw.resample, drawn[1])]
        image = batch.image.new_empty((len(batch), batch.image.shape[1], *size))
        label = None if batch.label is None else batch.label.new_empty((len(batch), 1, *size))
        valid = None
        if batch.valid is not None or any(interpolate):
            valid = torch.empty((len(batch), 1, *size), dtype=torch.bool, device=batch.image.device)
        for b in range(len(batch)):  # a sample at a time: the peak is one sample's, and no sample sees its neighbours
            sample = batch[b : b + 1]
            if interpolate[b]:
                new = resample(sample, geometry[b : b + 1].source_points())
            else:
                new = flip_crop(sample, size, draw.flips[b].tolist(), offsets[b].tolist())
            image[b] = new.image[0]
            if label is not None and new.label is not None:
                label[b] = new.label[0]
            if valid is not None:
                valid[b] = True if new.valid is None else new.valid[0]
        affine = compose(compose(batch.affine.double(), translation(batch.start)), matrix).to(batch.affine.dtype)
        spacing = batch.spacing * on_device(draw.scale, batch.spacing.device).to(batch.spacing.dtype)
        start = torch.zeros_like(batch.start)
        out = batch.replace(image=image, label=label, valid=valid, affine=affine, spacing=spacing, start=start)
        return out, geometry


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """A few numbers copied without waiting for the device: a blocking copy would first let it run dry."""
    return x.to(device, non_blocking=True)


def check_fits(batch: RegionBatch, size: Size3) -> None:
    """Raise ValueError when a batch is not normalised, or smaller than the output asked for."""
    if not batch.image.dtype.is_floating_point:
        raise ValueError("augmentation works on normalised values: call batch.normalised() first")
    if any(n < m for n, m in zip(batch.size, size)):
        raise ValueError(f"a region of {batch.size} voxels holds no output of {size}: read regions of reach({size})")


def crop_offset(source: Size3, size: Size3) -> list[int]:
    """First source voxel of the centre crop, per axis (rounded down when the excess is odd)."""
    return [(n - m) // 2 for n, m in zip(source, size)]


def flip_crop(
    batch: RegionBatch, size: Size3, flips: Sequence[float] = (1, 1, 1), offset: Sequence[int] | None = None
) -> RegionBatch:
    """The crop at `offset` (centred when None) of image, label and valid, flipped where `flips` is -1: copied."""
    box = (..., *(slice(o, o + n) for o, n in zip(offset or crop_offset(batch.size, size), size)))
    axes = [axis - 3 for axis, sign in enumerate(flips) if sign < 0]
    moved = {
        name: None if (field := getattr(batch, name)) is None else field[box].flip(axes)
        for name in ("image", "label", "valid")
    }
    return batch.replace(**moved)


def resample(batch: RegionBatch, points: Tensor) -> RegionBatch:
    """Image (linear), label and valid (nearest) of ONE sample at `points` (1,D,H,W,3) source voxels (d,h,w).

    Values of invalid voxels never mix into valid ones: weights of linear interpolation are renormalised over the
    valid neighbours. Outside the source and where the nearest voxel is invalid: valid False and air.
    """
    extent = on_device(torch.tensor(batch.size), points.device)
    inside = ((points >= -0.5) & (points <= extent - 0.5)).all(-1).unsqueeze(1)
    nearest = torch.minimum((points + 0.5).floor().long().clamp_(min=0), extent - 1)
    _, height, width = batch.size
    index = ((nearest[..., 0] * height + nearest[..., 1]) * width + nearest[..., 2]).flatten(1).unsqueeze(1)

    def at_nearest(field: Tensor) -> Tensor:
        return field.flatten(2).gather(2, index).view(1, 1, *points.shape[1:4])

    # grid_sample wants (x, y, z) in [-1, 1]; corners aligned, so that whole voxels fall on whole voxels.
    grid = (points * (2 / (extent - 1).clamp(min=1)) - 1).flip(-1).float()

    def linear(field: Tensor) -> Tensor:
        with torch.autocast(field.device.type, enabled=False):
            return F.grid_sample(field.float(), grid, "bilinear", "border", align_corners=True)

    if batch.valid is None:
        image, valid = linear(batch.image), inside
    else:
        weight = linear(batch.valid)
        image = linear(batch.image * batch.valid) / weight.clamp(min=1e-6)
        valid = inside & at_nearest(batch.valid)
    image = torch.where(valid, image, air(batch))
    label = None if batch.label is None else at_nearest(batch.label).masked_fill(~inside, 0)
    return batch.replace(image=image, label=label, valid=valid)


def air(batch: RegionBatch) -> Tensor:
    """(B,C,1,1,1): the normalised value of air, which stands where nothing was measured."""
    return ((batch.low - batch.mean) / batch.std).to(batch.image.dtype)[:, :, None, None, None]


def rotation_matrices(angles: Tensor) -> Tensor:
    """(B,3) radians about z, y, x -> (B,3,3) rotations of (z,y,x) vectors: Rz @ Ry @ Rx."""
    cos, sin = angles.cos(), angles.sin()
    result = torch.eye(3, dtype=angles.dtype, device=angles.device).repeat(len(angles), 1, 1)
    for axis in range(3):
        i, j = [(1, 2), (0, 2), (0, 1)][axis]
        turn = torch.eye(3, dtype=angles.dtype, device=angles.device).repeat(len(angles), 1, 1)
        turn[:, i, i] = turn[:, j, j] = cos[:, axis]
        turn[:, i, j], turn[:, j, i] = -sin[:, axis], sin[:, axis]
        result = compose(result, turn)
    return result


def matrices(draw: Draw, batch: RegionBatch, size: Size3, offsets: Tensor) -> Tensor:
    """(B,4,4) float64: output voxel index -> source voxel index, about the centre of the crop at `offsets` (B,3).

    source = centre + 1/spacing * R * (spacing * scale * flips) * (output - output centre).
    """
    device = batch.image.device
    spacing = batch.spacing.double()
    edge = spacing * on_device(draw.scale * draw.flips, device)
    linear = on_device(rotation_matrices(draw.angles), device) * edge[:, None, :] / spacing[:, :, None]
    centre = on_device(torch.tensor([(n - 1) / 2 for n in size], dtype=torch.float64), device)
    offset = on_device(offsets.double(), device)
    matrix = torch.eye(4, dtype=torch.float64, device=device).repeat(len(batch), 1, 1)
    matrix[:, :3, :3] = linear
    matrix[:, :3, 3] = offset + centre - (linear * centre).sum(-1)
    return matrix


def translation(offset: Tensor) -> Tensor:
    """(B,3) -> (B,4,4) float64 translations."""
    matrix = torch.eye(4, dtype=torch.float64, device=offset.device).repeat(len(offset), 1, 1)
    matrix[:, :3, 3] = offset.double()
    return matrix


def compose(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of (B,n,n), spelled out: a matmul would run in bfloat16 under autocast, or in TF32."""
    return (a[:, :, :, None] * b[:, None, :, :]).sum(2)
