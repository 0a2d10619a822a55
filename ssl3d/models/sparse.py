"""A convolutional encoder run on the visible voxels alone, with the parameters of the dense network.

What the dense network would compute with everything hidden set to zero before and after every convolution and pooling,
and instance norm taken over visible voxels only (Tian et al., "SparK", ICLR 2023, section 3.2), without spending
anything on what is hidden. Hidden voxels are not read: nothing of them can leak.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD, StackedResidualBlocks
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU, StackedConvBlocks
from torch import Tensor, nn

from ssl3d.models.backbone import StagedBackbone
from ssl3d.models.recompute import again
from ssl3d.models.sparse_layout import ONE, ActiveScales, ActiveVoxels, times
from ssl3d.models.sparse_ops import average_pool, convolve, normalise, runs_on_tiles, triple
from ssl3d.models.stunet import BasicResBlock
from ssl3d.regions import Size3

POINTWISE = (nn.Identity, nn.LeakyReLU, nn.ReLU, nn.GELU, nn.SiLU, nn.ELU)

# The share of active voxels below which convolving gathered tiles beats convolving the whole image, by the voxels of a
# tile: (at least so many, share). Measured by benchmarks/bench_sparse.py on a CPU, see benchmarks/README.md.
BREAK_EVEN = ((1, 0.18), (8, 0.39), (64, 0.75), (512, 0.93))


def pays(active: ActiveVoxels) -> bool:
    """Whether gathered tiles are expected to be faster than the whole image at this scale."""
    voxels = math.prod(active.tile)
    return active.share <= max(share for least, share in BREAK_EVEN if voxels >= least)


@dataclass
class SparseFeatures:
    """What an encoder makes of visible voxels: per scale, finest first, rows (N,C) and where they lie."""

    rows: list[Tensor]
    active: list[ActiveVoxels]

    def dense(self, scale: int, fill: Tensor | None = None) -> Tensor:
        """The feature map (B,C,D,H,W) of a scale, `fill` (C,) or zero where nothing is visible."""
        return self.active[scale].spread(self.rows[scale], fill)


@dataclass
class _Residual:
    """Steps of a residual block: the branch, its shortcut (empty: the input itself), what follows their sum."""

    branch: list[Step]
    shortcut: list[Step]
    last: list[Step]


Step = nn.Module | _Residual


def encode_visible(
    backbone: StagedBackbone,
    image: Tensor,
    hidden: Tensor,
    block: Size3,
    gather: Sequence[bool] | None = None,
) -> SparseFeatures:
    """Encode what is visible of an image (B,C,D,H,W): `hidden` (B,gD,gH,gW) bool, blocks of `block` voxels.

    `gather`: for each scale whether its convolutions run on gathered tiles (True) or on the image put together (False);
    by the measured break-even when None. The result is the same up to rounding.
    Raises ValueError, one sentence, on modules that cannot be run so (see `encoder_steps`).
    """
    d, h, w = image.shape[2:]
    backbone.check_size((d, h, w))
    scales = ActiveScales(hidden, block, (d, h, w))
    rows, stride = scales.at(ONE).take(image), ONE
    found: list[Tensor] = []
    run = again(run_stage, []) if backbone.recomputes else run_stage
    for steps, gathered in zip(encoder_steps(backbone), choices(backbone, scales, gather), strict=True):
        rows = run(steps, rows, scales, stride, gathered)
        stride = times(stride, _strides(steps))
        found.append(rows)
    return SparseFeatures(found, [scales.at(stride) for stride in backbone.strides])


def run_stage(steps: Sequence[Step], rows: Tensor, scales: ActiveScales, stride: Size3, gathered: bool) -> Tensor:
    """Rows (N,C) of the scale of `stride` -> rows of the scale that `steps`, one of `encoder_steps`, end at."""
    return _Run(scales, stride, gathered).all(steps, rows)


def choices(backbone: StagedBackbone, scales: ActiveScales, gather: Sequence[bool] | None = None) -> list[bool]:
    """For each scale whether its convolutions run on gathered tiles: `gather`, or the measured break-even."""
    return [pays(scales.at(stride)) for stride in backbone.strides] if gather is None else list(gather)


def work_share(backbone: StagedBackbone, scales: ActiveScales, gather: Sequence[bool] | None = None) -> float:
    """Multiply-adds of the convolutions of `encode_visible`, of those of the dense encoder."""
    done = dense = 0.0
    stride = ONE
    for steps, gathered in zip(encoder_steps(backbone), choices(backbone, scales, gather), strict=True):
        for conv, before in _convolutions(steps, stride):
            target = scales.at(times(before, triple(conv.stride)))
            cost = conv.weight.numel() * math.prod(target.size)
            tiled = runs_on_tiles(conv, scales.at(before), target, gathered)
            dense, done = dense + cost, done + cost * (target.share if tiled else 1.0)
        stride = times(stride, _strides(steps))
    return done / dense


def encoder_steps(backbone: StagedBackbone) -> list[list[Step]]:
    """The steps of every stage of an encoder.

    Raises ValueError, one sentence naming the backbone, on what is not a convolution of odd size that keeps the grid,
    instance norm without running statistics, average pooling, a pointwise activation or a residual block of these.
    """
    owner = type(backbone).__name__
    return [[step for m in modules for step in _steps(m, owner)] for modules in backbone.encoder_stages()]


def _steps(module: nn.Module, owner: str) -> list[Step]:
    def steps(*modules: object) -> list[Step]:
        return [step for m in modules if isinstance(m, nn.Module) for step in _steps(m, owner)]

    if isinstance(module, nn.Sequential):
        return steps(*module)
    if isinstance(module, ConvDropoutNormReLU):
        return steps(*module.all_modules)
    if isinstance(module, StackedConvBlocks):
        return steps(*module.convs)
    if isinstance(module, StackedResidualBlocks):
        return steps(*module.blocks)
    if isinstance(module, BasicResBlock):
        main = steps(module.conv1, module.norm1, nn.LeakyReLU(0.01), module.conv2, module.norm2)
        return [_Residual(main, steps(module.conv3), [nn.LeakyReLU(0.01)])]
    if isinstance(module, (BasicBlockD, BottleneckD)) and not (module.apply_stochastic_depth or module.apply_se):
        third = isinstance(module, BottleneckD)
        main = steps(module.conv1, module.conv2, *([module.conv3] if third else []))
        return [_Residual(main, steps(module.skip), steps(module.nonlin3 if third else module.nonlin2))]
    if isinstance(module, POINTWISE) or _plain_convolution(module) or _plain_norm_or_pool(module):
        return [module]
    raise ValueError(f"{owner}: its encoder holds {module}, which cannot be run on visible voxels only")


def _plain_convolution(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv3d) or module.groups > 1 or module.padding_mode != "zeros":
        return False
    same = [(k - 1) // 2 for k in module.kernel_size]
    return set(module.dilation) == {1} and list(module.padding) == same and all(k % 2 for k in module.kernel_size)


def _plain_norm_or_pool(module: nn.Module) -> bool:
    if isinstance(module, nn.InstanceNorm3d):
        return not module.track_running_stats
    return isinstance(module, nn.AvgPool3d) and module.kernel_size == module.stride and not module.padding


class _Run:
    """A pass through a stage: the stride it has come to, and whether it gathers."""

    def __init__(self, scales: ActiveScales, stride: Size3, gathered: bool) -> None:
        self.scales, self.stride, self.gathered = scales, stride, gathered

    def all(self, steps: Sequence[Step], rows: Tensor) -> Tensor:
        """Every step in order."""
        for step in steps:
            rows = self.residual(step, rows) if isinstance(step, _Residual) else self.one(step, rows)
        return rows

    def residual(self, block: _Residual, rows: Tensor) -> Tensor:
        """Branch and shortcut start at the same scale and end at the same one."""
        start = self.stride
        shortcut = self.all(block.shortcut, rows)
        self.stride = start
        return self.all(block.last, self.all(block.branch, rows) + shortcut)

    def one(self, module: nn.Module, rows: Tensor) -> Tensor:
        """A step without branches."""
        source = self.scales.at(self.stride)
        if isinstance(module, nn.InstanceNorm3d):
            return normalise(rows, module, source)
        if isinstance(module, POINTWISE):
            return module(rows)
        self.stride = times(self.stride, _strides([module]))
        target = self.scales.at(self.stride)
        if isinstance(module, nn.Conv3d):
            return convolve(rows, module, source, target, self.gathered)
        assert isinstance(module, nn.AvgPool3d)
        return average_pool(rows, module, source, target)


def _strides(steps: Sequence[Step]) -> Size3:
    """How much coarser the grid is behind some steps."""
    product = ONE
    for step in steps:
        if isinstance(step, _Residual):
            product = times(product, _strides(step.branch))
        elif isinstance(step, (nn.Conv3d, nn.AvgPool3d)):
            product = times(product, triple(step.stride))
    return product


def _convolutions(steps: Sequence[Step], stride: Size3) -> Iterator[tuple[nn.Conv3d, Size3]]:
    """Every convolution and the stride of what it is given, when `steps` are given something of `stride`."""
    for step in steps:
        if isinstance(step, _Residual):
            yield from _convolutions(step.branch, stride)
            yield from _convolutions(step.shortcut, stride)
        elif isinstance(step, nn.Conv3d):
            yield step, stride
        stride = times(stride, _strides([step]))


def least_active(visible: int, block: Size3, stride: Size3, size: Size3) -> int:
    """The fewest active voxels that a scale of `stride` can have in an image of `size` with so many visible blocks."""
    last = [n % b or b for n, b in zip(size, block)]  # a block at the border may be cut off
    covered = math.prod(max(1, b // s) for b, s in zip(last, stride))
    shared = math.prod(max(1, -(-s // b)) for b, s in zip(block, stride))
    return -(-visible // shared) * covered
