"""Which blocks of an image are hidden: an exact share of them, chosen by a strategy, drawn per sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ssl3d.regions import RegionBatch, Size3
from ssl3d.seeding import torch_generators
from ssl3d.tasks.mask_strategies import MaskStrategy, RandomBlocks


def as_size3(key: str, value: int | Sequence[int]) -> Size3:
    """One whole number for all axes, or three (D,H,W). Raises ValueError naming `key` unless all are positive."""
    sizes = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(sizes) != 3 or any(n < 1 for n in sizes):
        raise ValueError(f"{key}={value}: write one positive whole number, or three (D, H, W)")
    d, h, w = sizes
    return (d, h, w)


def block_voxels(blocks: Tensor, block: Size3, size: Size3) -> Tensor:
    """(B,gD,gH,gW) of blocks of `block` voxels -> (B,1,D,H,W) of `size`: each voxel has the value of its block."""
    for axis, b in enumerate(block, start=1):
        blocks = blocks.repeat_interleave(b, dim=axis)
    return blocks[:, None, : size[0], : size[1], : size[2]]


class BlockMask:
    """Hides exactly round(ratio * blocks) of the blocks that tile an image, a different set for each seed.

    `block`: voxels (D,H,W). `strategy`: which blocks; uniformly random ones when None. Where the image is no multiple
    of the block, the last block of the axis is smaller: the ratio is exact in blocks, and in voxels only when the
    image is a multiple. At least one block is hidden and one left.
    Raises ValueError naming `mask_ratio` unless 0 < ratio < 1, and `mask_block` on sizes below 1.
    """

    def __init__(self, ratio: float, block: int | Sequence[int], strategy: MaskStrategy | None = None) -> None:
        if not 0.0 < ratio < 1.0:
            raise ValueError(f"mask_ratio={ratio}: the share of hidden blocks must lie strictly between 0 and 1")
        self.ratio = float(ratio)
        self.block = as_size3("mask_block", block)
        self.strategy = strategy or RandomBlocks()

    def check(self, size: Size3) -> None:
        """Raise ValueError when a block is larger than an image of `size`, or the image is a single block."""
        for axis, n, b in zip("DHW", size, self.block):
            if b > n:
                raise ValueError(f"mask_block={list(self.block)}: axis {axis} of the patch has only {n} voxels")
        if math.prod(self.grid(size)) < 2:
            raise ValueError(f"mask_block={list(self.block)}: a patch of {size} is one block; use smaller blocks")

    def grid(self, size: Size3) -> Size3:
        """Blocks (D,H,W) that tile an image of `size` voxels."""
        d, h, w = (-(-n // b) for n, b in zip(size, self.block))
        return (d, h, w)

    def count(self, size: Size3) -> int:
        """How many blocks of an image of `size` voxels are hidden."""
        blocks = math.prod(self.grid(size))
        return min(max(round(self.ratio * blocks), 1), blocks - 1)

    def draw(self, batch: RegionBatch) -> Tensor:
        """A normalised batch -> (B,gD,gH,gW) bool on its device, True where the block is hidden."""
        grid, count = self.grid(batch.size), self.count(batch.size)
        ranks = self.strategy.order(batch, grid, self.block, torch_generators(batch.seed, "mask"))
        # The strategy ranks the blocks; the first `count` are hidden, so that the ratio is exact whatever it prefers.
        hidden = torch.zeros(ranks.shape, dtype=torch.bool, device=ranks.device)
        hidden.scatter_(1, ranks[:, :count], True)
        return hidden.view(-1, *grid).to(batch.image.device, non_blocking=True)

    def voxels(self, blocks: Tensor, size: Size3) -> Tensor:
        """(B,gD,gH,gW) -> (B,1,D,H,W): each voxel has the value of its block."""
        return block_voxels(blocks, self.block, size)
