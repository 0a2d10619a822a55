"""Places that two views of a sample both show, found through their geometries, and the features that lie there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl3d.augment.spatial import on_device
from ssl3d.regions import Geometry, RegionBatch, Size3
from ssl3d.seeding import torch_generators


@dataclass
class MatchedPoints:
    """K places, each with the P positions around it, in both views.

    `first`, `second` (B,K,P,3): voxels (d,h,w) of the views; `source` (B,K,3): voxels of the region both were made
    from; `matched` (B,K) bool: both views hold all P positions, in valid voxels.
    """

    first: Tensor
    second: Tensor
    source: Tensor
    matched: Tensor


class PointSampler:
    """Draws places in the first view and finds them in the second.

    `size`: voxels (D,H,W) of a view; `stride`: of the features that will be compared; `region`: positions on an edge
    of a place, a stride apart. `lattice`: the 3x3x3 places at the ends and the middle of every axis and the 2x2x2 at
    the quarters (the 3D form of Chaitanya's 13), else `count` random ones, of four times as many candidates those that
    seem to lie in both views. Raises ValueError naming `region` when it does not fit the view.
    """

    CANDIDATES = 4

    def __init__(self, size: Size3, stride: Size3, region: int, count: int, lattice: bool) -> None:
        self.size, self.stride, self.lattice = size, stride, lattice
        half = region // 2
        # Positions stay between the centres of the outermost cells: there features are interpolated, never continued.
        self.low = [(s - 1) / 2 + half * s for s in stride]
        self.span = [n - 1 - 2 * low for n, low in zip(size, self.low)]
        if any(span < 0 for span in self.span):
            raise ValueError(
                f"region={region}: so many cells of {list(stride)} voxels on an edge do not fit the patch {list(size)}"
            )
        offsets = torch.tensor(list(itertools.product(range(-half, half + 1), repeat=3)))
        self.offsets = (offsets * torch.tensor(stride)).float()
        ends, quarters = (list(itertools.product(x, repeat=3)) for x in ((0.0, 0.5, 1.0), (0.25, 0.75)))
        self.shares = torch.tensor(ends + quarters)
        self.count = len(self.shares) if lattice else count

    def draw(self, seeds: Tensor) -> Tensor:
        """(B, candidates, 3) on the CPU: voxels of the first view, a function of each sample's seed."""
        if self.lattice:
            shares = self.shares.expand(len(seeds), -1, -1)
        else:
            number = self.CANDIDATES * self.count
            shares = torch.stack([torch.rand((number, 3), generator=g) for g in torch_generators(seeds, "points")])
        return torch.tensor(self.low) + shares * torch.tensor(self.span)

    @torch.no_grad()
    def match(self, views: Sequence[RegionBatch], geometries: Sequence[Geometry]) -> MatchedPoints:
        """Two views of the same samples and their geometries, which point into one region -> the places in both."""
        device = views[0].image.device
        centres = on_device(self.draw(views[0].seed), device)
        there = geometries[1].to_output(geometries[0].to_source(centres))
        likely = self.inside(there, self.low) & valid_at(views[0], centres) & valid_at(views[1], there)
        # Those first, in the order drawn: a fixed number without asking the device how many there are.
        kept = (~likely).to(torch.uint8).argsort(dim=1, stable=True)[:, : self.count]
        centres = centres.gather(1, kept[..., None].expand(-1, -1, 3))
        first = centres[:, :, None] + on_device(self.offsets, device)
        second = geometries[1].to_output(geometries[0].to_source(first))
        matched = self.inside(second, [(s - 1) / 2 for s in self.stride])
        matched &= valid_at(views[0], first) & valid_at(views[1], second)
        return MatchedPoints(first, second, geometries[0].to_source(centres), matched.all(-1))

    def inside(self, points: Tensor, margin: Sequence[float]) -> Tensor:
        """(B,...,3) voxels of a view -> (B,...) bool: at least `margin` voxels (D,H,W) from its outermost ones."""
        size, edge = (on_device(torch.tensor(x), points.device) for x in (self.size, margin))
        return ((points >= edge) & (points <= size - 1 - edge)).all(-1)


def valid_at(view: RegionBatch, points: Tensor) -> Tensor:
    """(B,...,3) voxels -> (B,...) bool: whether the nearest voxel is valid (that of the border beyond it)."""
    if view.valid is None:
        return torch.ones(points.shape[:-1], dtype=torch.bool, device=points.device)
    last = on_device(torch.tensor(view.size), points.device) - 1
    d, h, w = torch.minimum(points.round().long().clamp(min=0), last).unbind(-1)
    index = (d * view.size[1] + h) * view.size[2] + w
    return view.valid.flatten(1).gather(1, index.flatten(1)).view(index.shape)


def features_at(features: Tensor, points: Tensor, stride: Sequence[float] = (1, 1, 1)) -> Tensor:
    """Features (B,C,d,h,w) of a stride and voxels (B,...,3) -> (B,...,C): trilinear between the centres of cells.

    In at least float32. Beyond the outermost centres the features continue.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    stride_here, cells = (on_device(torch.tensor(x), points.device) for x in (stride, features.shape[2:]))
    place = (points.to(features.dtype) + 0.5) / stride_here - 0.5
    grid = (place * (2 / (cells - 1).clamp(min=1)) - 1).flip(-1).view(len(points), -1, 1, 1, 3).to(features.dtype)
    with torch.autocast(features.device.type, enabled=False):
        found = F.grid_sample(features, grid, "bilinear", "border", align_corners=True)
    return found.flatten(2).transpose(1, 2).unflatten(1, points.shape[1:-1])
