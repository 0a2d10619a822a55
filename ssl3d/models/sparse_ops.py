"""Convolution, pooling and normalisation of the active voxels alone: rows in, rows out.

Each equals the same operation on the whole image with everything that is not active set to zero, before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.models.sparse_layout import ActiveVoxels, times
from ssl3d.regions import Size3


def triple(values: int | Sequence[int]) -> Size3:
    """Three numbers (D,H,W) from torch's one or three."""
    d, h, w = (values,) * 3 if isinstance(values, int) else values
    return (d, h, w)


def convolve(rows: Tensor, conv: nn.Conv3d, source: ActiveVoxels, target: ActiveVoxels, gathered: bool) -> Tensor:
    """(N,C) of `source` -> (M,O) of `target`, whose voxels are `conv.stride` times as large.

    `gathered`: convolve the tiles with a halo of their neighbours, if those of `target` are the same ones; else the
    image is put together, convolved whole and taken apart again.
    """
    if _is_linear(conv):
        return F.linear(rows, conv.weight.flatten(1), conv.bias)
    if not runs_on_tiles(conv, source, target, gathered):
        return target.take(conv(source.spread(rows)))
    assert not isinstance(conv.padding, str)
    stride, padding = triple(conv.stride), triple(conv.padding)
    weight, bias = conv.weight, conv.bias
    device = rows.device.type
    if torch.is_autocast_enabled(device):  # a function of our own is not cast by autocast
        dtype = torch.get_autocast_dtype(device)
        rows, weight, bias = rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _TileConvolution.apply(rows, weight, bias, source, target, stride, padding)


def average_pool(rows: Tensor, pool: nn.AvgPool3d, source: ActiveVoxels, target: ActiveVoxels) -> Tensor:
    """(N,C) of `source` -> (M,C) of `target`; what is not active counts as zero."""
    if same_tiles(source, target, triple(pool.stride)):
        pooled = pool(source.tiled(rows))
        return pooled.movedim(1, -1).reshape(-1, rows.shape[1])
    return target.take(pool(source.spread(rows)))


def normalise(rows: Tensor, norm: nn.InstanceNorm3d, active: ActiveVoxels) -> Tensor:
    """Instance norm over the active voxels of each sample, (N,C) -> (N,C), in at least float32.

    Raises ValueError when a sample has a single active voxel.
    """
    if 1 in active.rows:
        raise ValueError(
            "a sample has a single visible voxel at a coarse scale, which instance norm cannot normalise: "
            "hide less, or use larger images"
        )
    return _Normalisation.apply(rows, norm.weight, norm.bias, active.rows, norm.eps)


def runs_on_tiles(conv: nn.Conv3d, source: ActiveVoxels, target: ActiveVoxels, gathered: bool) -> bool:
    """Whether `convolve` computes active tiles only; without neighbours (1x1x1) it always does."""
    return _is_linear(conv) or (gathered and same_tiles(source, target, triple(conv.stride)))


def _is_linear(conv: nn.Conv3d) -> bool:
    return triple(conv.kernel_size) == triple(conv.stride) == (1, 1, 1)


def same_tiles(source: ActiveVoxels, target: ActiveVoxels, stride: Size3) -> bool:
    """Whether the tiles of `target` are those of `source`, `stride` times coarser inside."""
    return source.tiles is target.tiles and source.tile == times(target.tile, stride)


class _TileConvolution(torch.autograd.Function):
    """A convolution over tiles with halo. Its gradient is one too: of the tiles' gradients, with halo, by the same
    weights. So nothing is ever added up over overlapping halos, and the tiles with halo need not be kept."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        source: ActiveVoxels,
        target: ActiveVoxels,
        stride: Size3,
        padding: Size3,
    ) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.source, ctx.target, ctx.stride, ctx.padding = source, target, stride, padding
        y = F.conv3d(_input_with_halo(rows, source, weight, stride, padding), weight, bias, stride)
        return _as_rows(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        source, target, stride, padding = ctx.source, ctx.target, ctx.stride, ctx.padding
        of_rows = of_weight = of_bias = None
        gradient = gradient.contiguous()
        if ctx.needs_input_grad[0]:
            of_rows = _input_gradient(gradient, weight, source, target, stride, padding)
        if ctx.needs_input_grad[1]:
            x = _input_with_halo(rows, source, weight, stride, padding)
            tiles = target.tiled(gradient)
            _, of_weight, _ = torch.ops.aten.convolution_backward(
                tiles, x, weight, None, stride, [0] * 3, [1] * 3, False, [0] * 3, 1, [False, True, False]
            )
        if ctx.needs_input_grad[2]:
            wide = torch.promote_types(gradient.dtype, torch.float32)
            of_bias = gradient.sum(0, dtype=wide).to(weight.dtype)
        return of_rows, of_weight, of_bias, None, None, None, None


class _Normalisation(torch.autograd.Function):
    """Each column of each sample's rows less its mean, by its deviation, times weight, plus bias.

    torch's batch norm of a matrix would be the same in exact numbers, but on a CPU adds its rows up one by one: with
    the million voxels of a fine scale float32 is wrong in the fourth digit.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor | None, bias: Tensor | None, counts: list[int], eps: float
    ) -> Tensor:
        wide = torch.promote_types(rows.dtype, torch.float32)
        ones, zeros = torch.ones_like(rows[0], dtype=wide), torch.zeros_like(rows[0], dtype=wide)
        means, scales, parts = [], [], []
        for part in rows.split(counts):
            means.append(part.to(wide).mean(0) if len(part) else zeros)
            centred = part - means[-1]
            variance = centred.square().mean(0) if len(part) else ones
            scales.append((variance + eps).rsqrt())
            scale = scales[-1] if weight is None else scales[-1] * weight
            parts.append(torch.addcmul(zeros if bias is None else bias, centred, scale).to(rows.dtype))
        ctx.save_for_backward(rows, torch.stack(means), torch.stack(scales), weight)
        ctx.counts = counts
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, means, scales, weight = ctx.saved_tensors
        of_weight, of_bias, parts = torch.zeros_like(means[0]), torch.zeros_like(means[0]), []
        for part, g, mean, scale in zip(rows.split(ctx.counts), gradient.split(ctx.counts), means, scales):
            n, g = max(len(part), 1), g.to(mean.dtype)
            centred = part - mean
            along, total = (g * centred).sum(0) * scale, g.sum(0)
            of_weight, of_bias = of_weight + along, of_bias + total
            inner = scale if weight is None else scale * weight
            x = torch.addcmul(g * inner - inner * total / n, centred, -inner * scale * along / n)
            parts.append(x.to(rows.dtype))
        of_rows = torch.cat(parts) if len(parts) > 1 else parts[0]
        return of_rows, *((None, None) if weight is None else (of_weight, of_bias)), None, None


def _input_with_halo(rows: Tensor, source: ActiveVoxels, weight: Tensor, stride: Size3, padding: Size3) -> Tensor:
    """(n,C,...): all that the outputs inside each tile are made from."""
    high = [max(0, k - p - s) for k, p, s in zip(weight.shape[2:], padding, stride)]
    return source.with_halo(rows, padding, triple(high))


def _input_gradient(
    gradient: Tensor, weight: Tensor, source: ActiveVoxels, target: ActiveVoxels, stride: Size3, padding: Size3
) -> Tensor:
    """(M,O) -> (N,C). Input u is read by the outputs o with 0 <= u + p - s*o < k, on each axis."""
    kernel = triple(weight.shape[2:])
    if stride == (1, 1, 1):
        low = triple([k - 1 - p for k, p in zip(kernel, padding)])
        x = target.with_halo(gradient, low, padding)
        return _as_rows(F.conv3d(x, weight.flip(2, 3, 4).transpose(0, 1)))
    low = triple([max(0, (k - 1 - p) // s) for k, p, s in zip(kernel, padding, stride)])
    high = triple([max(0, (t - 1 + p) // s - t // s + 1) for t, p, s in zip(source.tile, padding, stride)])
    x = target.with_halo(gradient, low, high)
    # The transposed convolution starts at input -p - s*low; what stands before and behind the tile is cut off, and
    # inputs behind the last that any output reads are zero.
    start = [s * lo + p for s, lo, p in zip(stride, low, padding)]
    length = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], stride, kernel)]
    beyond = [max(0, a + t - n) for a, t, n in zip(start, source.tile, length)]
    y = F.conv_transpose3d(x, weight, stride=stride, output_padding=beyond)
    for axis, (a, t) in enumerate(zip(start, source.tile), start=2):
        y = y.narrow(axis, a, t)
    return _as_rows(y)


def _as_rows(tiles: Tensor) -> Tensor:
    """(n,C,D,H,W) -> (n*D*H*W,C)."""
    return tiles.movedim(1, -1).reshape(-1, tiles.shape[1])
