"""Which voxels of an image are visible at each scale of an encoder, and how they are kept as rows of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl3d.regions import Size3

ONE: Size3 = (1, 1, 1)


def times(a: Size3, b: Sequence[int]) -> Size3:
    """Product, axis by axis."""
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


def over(a: Size3, b: Sequence[int]) -> Size3:
    """Quotient, axis by axis, of multiples."""
    return (a[0] // b[0], a[1] // b[1], a[2] // b[2])


class ActiveVoxels:
    """The active voxels of one scale as N rows: tile after tile of one size, voxels of a tile in row-major order.

    `tiles` (n,): the active tiles' numbers in the row-major grid (B,gD,gH,gW), ascending; `counts`: how many each
    sample has; `grid`: tiles (gD,gH,gW) an image; `tile`: voxels (D,H,W) a tile, so N = n * voxels of a tile.
    """

    def __init__(self, tiles: Tensor, counts: Sequence[int], grid: Size3, tile: Size3) -> None:
        self.tiles, self.counts, self.grid, self.tile = tiles, tuple(counts), grid, tile
        self._halos: dict[tuple[Size3, Size3], tuple[Tensor, Tensor]] = {}

    @property
    def size(self) -> Size3:
        """Voxels (D,H,W) of the whole scale."""
        return times(self.grid, self.tile)

    @property
    def share(self) -> float:
        """The share of all voxels that is active."""
        return sum(self.counts) / (len(self.counts) * math.prod(self.grid))

    @property
    def rows(self) -> list[int]:
        """Rows of each sample."""
        return [count * math.prod(self.tile) for count in self.counts]

    def _places(self) -> tuple[Tensor, ...]:
        """Sample and grid position of each tile: b, d, h, w, (n,) each."""
        return torch.unravel_index(self.tiles, (len(self.counts), *self.grid))

    @cached_property
    def voxels(self) -> Tensor:
        """(N,): the number of each row's voxel in row-major (B,D,H,W)."""
        number, *places = self._places()
        number = number.view(-1, 1, 1, 1)
        for axis, (place, n, t) in enumerate(zip(places, self.size, self.tile), start=1):
            inner = torch.arange(t, device=place.device).view([t if a == axis else 1 for a in range(1, 4)])
            number = number * n + place.view(-1, 1, 1, 1) * t + inner
        return number.flatten()

    def take(self, dense: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (N,C): the active voxels."""
        return _Take.apply(dense.movedim(1, -1).reshape(-1, dense.shape[1]), self.voxels)

    def spread(self, rows: Tensor, fill: Tensor | None = None) -> Tensor:
        """(N,C) -> (B,C,D,H,W), `fill` (C,) or zero where nothing is active. In channels-last memory."""
        shape = (len(self.counts), *self.size, rows.shape[1])
        length = math.prod(shape[:-1])
        base = rows.new_zeros(length, shape[-1]) if fill is None else fill.to(rows.dtype).expand(length, -1)
        return base.index_copy(0, self.voxels, rows).view(shape).movedim(-1, 1)

    def tiled(self, rows: Tensor) -> Tensor:
        """(N,C) -> (n,C,tD,tH,tW), a view in channels-last memory."""
        return rows.view(-1, *self.tile, rows.shape[1]).movedim(-1, 1)

    def with_halo(self, rows: Tensor, low: Size3, high: Size3) -> Tensor:
        """(N,C) -> (n,C,low+tD+high,...): tiles with the voxels around them, zero where those are not active.

        Outside autograd: what needs a gradient writes its own.
        """
        if not any(low) and not any(high):
            return self.tiled(rows)
        index, missing = self._halo(low, high)
        filled = rows.index_select(0, index.flatten()).index_fill_(0, missing, 0)
        return filled.view(*index.shape, rows.shape[1]).movedim(-1, 1)

    def _halo(self, low: Size3, high: Size3) -> tuple[Tensor, Tensor]:
        """Row of every voxel of the tiles with halo (n,...), 0 where it is not active; and where that is, flattened."""
        if (low, high) not in self._halos:
            device = self.tiles.device
            sample, *places = self._places()
            reach = [max(-(-lo // t), -(-hi // t)) for lo, hi, t in zip(low, high, self.tile)]  # in tiles
            number = torch.full((len(self.counts) * math.prod(self.grid),), -1, device=device)
            number[self.tiles] = torch.arange(len(self.tiles), device=device)
            number = number.view(-1, *self.grid)
            number = F.pad(number, [r for r in reach[::-1] for _ in range(2)], value=-1)
            where: list[Tensor] = [sample.view(-1, 1, 1, 1)]
            inner = torch.zeros((1, 1, 1, 1), dtype=torch.int64, device=device)
            for axis, (place, lo, hi, t, r) in enumerate(zip(places, low, high, self.tile, reach), start=1):
                shape = [-1 if a == axis else 1 for a in range(4)]
                offset = torch.arange(-lo, t + hi, device=device)
                step = offset.div(t, rounding_mode="floor")
                where.append(place.view(-1, 1, 1, 1) + step.view(shape) + r)
                inner = inner * t + (offset - step * t).view(shape)
            neighbour = number[tuple(where)]
            index = torch.where(neighbour < 0, 0, neighbour * math.prod(self.tile) + inner)
            self._halos[low, high] = (index, (neighbour < 0).flatten().nonzero().flatten())
        return self._halos[low, high]


class _Take(torch.autograd.Function):
    """Distinct rows of a matrix: the gradient is copied back, not added up, which is many times faster on a CPU."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.length = len(dense)
        return dense.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.length, gradient.shape[1]).index_copy_(0, index, gradient), None


class ActiveScales:
    """The active voxels of an image at any stride: a voxel of a scale is active where any visible voxel lies in it.

    `hidden` (B,gD,gH,gW) bool: blocks of `block` voxels that tile images of `size` voxels (the last ones may reach
    beyond). Where a stride divides the block no voxel of its scale is half hidden, and the blocks become tiles;
    elsewhere every active voxel is a tile of its own.
    """

    def __init__(self, hidden: Tensor, block: Size3, size: Size3) -> None:
        self.size, self.device = size, hidden.device
        # Tiles divide image and block alike, so that a block cut off by the border is whole tiles too.
        self.tile: Size3 = (math.gcd(block[0], size[0]), math.gcd(block[1], size[1]), math.gcd(block[2], size[2]))
        visible = ~hidden.cpu()  # counts are needed as numbers: one wait for the device, here
        for axis, (b, t, n) in enumerate(zip(block, self.tile, size), start=1):
            visible = visible.repeat_interleave(b // t, dim=axis).narrow(axis, 0, n // t)
        self._visible = visible
        self._tiles, self._counts = self._listed(visible)
        self._scales: dict[Size3, ActiveVoxels] = {}

    def at(self, stride: Size3) -> ActiveVoxels:
        """The scale of a `stride` (D,H,W) to the image, which divides its size."""
        if stride not in self._scales:
            self._scales[stride] = self._make(stride)
        return self._scales[stride]

    def _make(self, stride: Size3) -> ActiveVoxels:
        grid: Size3 = (self._visible.shape[1], self._visible.shape[2], self._visible.shape[3])
        if all(t % s == 0 for t, s in zip(self.tile, stride)):
            return ActiveVoxels(self._tiles, self._counts, grid, over(self.tile, stride))
        visible = self._visible
        for axis, t in enumerate(self.tile, start=1):
            visible = visible.repeat_interleave(t, dim=axis)
        cells = over(self.size, stride)
        for axis, (c, s) in enumerate(zip(cells, stride), start=1):
            visible = visible.unflatten(axis, (c, s)).any(axis + 1)
        return ActiveVoxels(*self._listed(visible), cells, ONE)

    def _listed(self, visible: Tensor) -> tuple[Tensor, list[int]]:
        """Numbers of the tiles that are True, on the device, and how many each sample has."""
        tiles = visible.flatten().nonzero().flatten()
        return tiles.to(self.device, non_blocking=True), visible.flatten(1).sum(1).tolist()
