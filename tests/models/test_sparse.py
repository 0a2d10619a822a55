"""Encoders on visible voxels alone: equal to the dense network with everything masked, and blind to what is hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ssl3d.models.backbone import StagedBackbone
from ssl3d.models.plain_unet import PlainConvUNet
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.sparse import choices, encode_visible, encoder_steps, least_active, work_share
from ssl3d.models.sparse_layout import ActiveScales
from ssl3d.models.sparse_ops import normalise
from ssl3d.models.stunet import STUNet
from ssl3d.regions import Size3
from ssl3d.testing.backbone import randomise

ANISOTROPIC = {
    "features_per_stage": [4, 6, 8],
    "n_blocks_per_stage": [1, 2, 1],
    "kernel_sizes": [[1, 3, 3], [3, 5, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
}
FOUR_STAGES = {"features_per_stage": [4, 6, 8, 10], "n_blocks_per_stage": [1, 2, 1, 1]}
PLAIN = {"n_stages": 3, "features_per_stage": [4, 6, 8], "n_conv_per_stage": [2, 1, 2]}


def resenc(**changes: Any) -> ResEncUNet:
    return ResEncUNet("S", arch_kwargs=FOUR_STAGES | changes)


def anisotropic() -> ResEncUNet:
    return ResEncUNet("S", in_channels=2, arch_kwargs=ANISOTROPIC)


# network, image (D,H,W), block: blocks of the total stride, cut off at the border, larger, smaller, and across strides
CASES: dict[str, tuple[Callable[[], StagedBackbone], Size3, Size3]] = {
    "total stride": (resenc, (16, 32, 24), (8, 8, 8)),
    "cut off": (resenc, (16, 24, 40), (8, 16, 16)),
    "smaller": (resenc, (16, 32, 24), (4, 4, 4)),
    "across": (resenc, (24, 24, 16), (12, 6, 8)),
    "anisotropic": (anisotropic, (6, 16, 24), (2, 4, 4)),
    "anisotropic, larger": (anisotropic, (8, 16, 24), (4, 4, 8)),
    "first stage strided": (
        lambda: resenc(strides=[[1, 2, 2], [1, 1, 1], [2, 2, 2], [2, 2, 1]]),
        (8, 16, 24),
        (4, 8, 8),
    ),
    "plain": (lambda: PlainConvUNet("S", arch_kwargs=PLAIN), (12, 16, 8), (4, 4, 4)),
    "STU-Net": (lambda: STUNet("tiny", strides=((1, 2, 2),) * 3 + ((2, 1, 1), (1, 1, 2))), (4, 16, 48), (2, 8, 16)),
}


def draw(size: Size3, block: Size3, ratio: float = 0.7, samples: int = 2) -> Tensor:
    """(B,gD,gH,gW) bool, another number of hidden blocks in each sample."""
    grid = [-(-n // b) for n, b in zip(size, block)]
    count = grid[0] * grid[1] * grid[2]
    order = torch.rand((samples, count)).argsort(1)
    return (order < torch.tensor([[int(ratio * count) - i] for i in range(samples)])).view(samples, *grid)


def expanded(hidden: Tensor, block: Size3, size: Size3) -> Tensor:
    """(B,1,D,H,W) bool."""
    for axis, b in enumerate(block, start=1):
        hidden = hidden.repeat_interleave(b, axis)
    return hidden[:, None, : size[0], : size[1], : size[2]]


def prepared(name: str, dtype: torch.dtype = torch.float64) -> tuple[StagedBackbone, Tensor, Tensor, Size3]:
    """Network, image, hidden blocks, block."""
    make, size, block = CASES[name]
    backbone = make()
    randomise(backbone)
    image = torch.randn((2, backbone.in_channels, *size), dtype=dtype)
    return backbone.to(dtype), image, draw(size, block), block


@contextmanager
def masked_everywhere(backbone: nn.Module, hidden: Tensor) -> Iterator[None]:
    """The dense network, masked behind every convolution and pooling, norms over active voxels: in plain code."""

    def active(x: Tensor) -> Tensor:
        cell = [n // m for n, m in zip(hidden.shape[2:], x.shape[2:])]
        return F.max_pool3d((~hidden).to(x.dtype), cell, cell) > 0

    def norm(module: nn.InstanceNorm3d, given: tuple[Tensor], output: Tensor) -> Tensor:
        (x,), mask, samples = given, active(output), []
        for b in range(len(x)):
            v = x[b][:, mask[b, 0]]
            v = (v - v.mean(1, keepdim=True)) / (v.var(1, unbiased=False, keepdim=True) + module.eps).sqrt()
            v = v * module.weight[:, None] + module.bias[:, None]
            samples.append(torch.zeros_like(x[b]).masked_scatter(mask[b].expand_as(x[b]), v))
        return torch.stack(samples)

    handles = []
    for module in backbone.modules():
        if isinstance(module, (nn.Conv3d, nn.AvgPool3d)):
            handles.append(module.register_forward_hook(lambda m, given, output: output * active(output)))
        elif isinstance(module, nn.InstanceNorm3d):
            handles.append(module.register_forward_hook(norm))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reference(backbone: StagedBackbone, image: Tensor, hidden: Tensor, block: Size3) -> list[Tensor]:
    d, h, w = image.shape[2:]
    voxels = expanded(hidden, block, (d, h, w))
    with masked_everywhere(backbone, voxels):
        return backbone.encode(image * ~voxels)


def gradients(backbone: nn.Module, features: list[Tensor], weights: list[Tensor]) -> dict[str, Tensor]:
    backbone.zero_grad()
    sum((f * w).sum() for f, w in zip(features, weights, strict=True)).backward()  # type: ignore[union-attr]
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("gather", ["measured", "all", "none"])
@pytest.mark.parametrize("name", CASES)
def test_features_and_gradients_equal_the_masked_dense_network(name, gather):
    backbone, image, hidden, block = prepared(name)
    n = len(backbone.strides)
    choice = {"measured": None, "all": [True] * n, "none": [False] * n}[gather]
    expected = reference(backbone, image, hidden, block)
    weights = [torch.randn_like(f) for f in expected]
    found = encode_visible(backbone, image, hidden, block, choice)
    dense = [found.dense(i) for i in range(n)]
    for ours, theirs in zip(dense, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 * theirs.abs().max().item())
    ours, theirs = gradients(backbone, dense, weights), gradients(backbone, expected, weights)
    assert ours.keys() == theirs.keys() and ours
    largest = max(g.abs().max().item() for g in theirs.values())
    for key, gradient in theirs.items():
        # what a norm takes out again (the bias before it) has gradient 0, known up to rounding of what cancels
        tolerance = 1e-9 * gradient.abs().max().item() + 1e-12 * largest
        torch.testing.assert_close(ours[key], gradient, rtol=0, atol=tolerance, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_float32_is_as_exact_as_the_masked_dense_network(name):
    backbone, image, hidden, block = prepared(name, torch.float32)
    expected = reference(backbone, image, hidden, block)
    weights = [torch.randn_like(f) for f in expected]
    found = encode_visible(backbone, image, hidden, block)
    dense = [found.dense(i) for i in range(len(expected))]
    for ours, theirs in zip(dense, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())
    ours, theirs = gradients(backbone, dense, weights), gradients(backbone, expected, weights)
    largest = max(g.abs().max().item() for g in theirs.values())
    for key, gradient in theirs.items():
        tolerance = 1e-4 * gradient.abs().max().item() + 1e-5 * largest
        torch.testing.assert_close(ours[key], gradient, rtol=0, atol=tolerance, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_hidden_voxels_are_never_read(name, gather):
    """Not even as 0 times something: NaN in every hidden voxel changes no bit of any scale, and gets no gradient."""
    backbone, image, hidden, block = prepared(name, torch.float32)
    d, h, w = image.shape[2:]
    voxels = expanded(hidden, block, (d, h, w)).expand_as(image)
    poisoned = torch.where(voxels, torch.nan, image).requires_grad_()
    choice = [gather] * len(backbone.strides)
    before = encode_visible(backbone, image, hidden, block, choice)
    after = encode_visible(backbone, poisoned, hidden, block, choice)
    for i in range(len(backbone.strides)):
        assert torch.equal(before.dense(i), after.dense(i)), f"scale {i}"
    sum(f.square().sum() for f in after.rows).backward()
    assert poisoned.grad is not None and torch.equal(poisoned.grad != 0, ~voxels)


def test_what_nothing_is_visible_in_is_zero_or_the_filling():
    backbone, image, hidden, block = prepared("total stride")
    found = encode_visible(backbone, image, hidden, block)
    voxels = expanded(hidden, block, (16, 32, 24))
    for i, (d, h, w) in enumerate(backbone.strides):
        here = voxels[:, 0, ::d, ::h, ::w]
        plain, filled = found.dense(i).movedim(1, -1), found.dense(i, torch.arange(1.0, 1 + backbone.channels[i]))
        assert (plain[here] == 0).all() and (plain[~here] != 0).any(1).all()
        assert torch.equal(filled.movedim(1, -1)[~here], plain[~here])
        assert (filled.movedim(1, -1)[here] == torch.arange(1.0, 1 + backbone.channels[i])).all()


def test_passes_do_not_know_of_each_other():
    """Two masks at once, backward in the other order: nothing is kept outside of a pass."""
    backbone, image, hidden, block = prepared("smaller")
    other = draw((16, 32, 24), (8, 8, 8), 0.4)
    weights = [torch.randn(2, c, *(n // s for n, s in zip((16, 32, 24), t))).double()
               for c, t in zip(backbone.channels, backbone.strides)]  # fmt: skip

    def dense(h: Tensor, b: Size3) -> list[Tensor]:
        found = encode_visible(backbone, image, h, b)
        return [found.dense(i) for i in range(len(backbone.strides))]

    alone = gradients(backbone, dense(hidden, block), weights)
    first, second = dense(hidden, block), dense(other, (8, 8, 8))
    gradients(backbone, second, weights)
    together = gradients(backbone, first, weights)
    assert all(torch.equal(alone[key], together[key]) for key in alone)


@pytest.mark.parametrize("gather", [True, False])
def test_autocast_computes_in_bfloat16(gather):
    backbone, image, hidden, block = prepared("across", torch.float32)
    features, of_weights = [], []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
            found = encode_visible(backbone, image, hidden, block, [gather] * 4).rows
        assert all(f.dtype == dtype for f in found)
        of_weights.append(gradients(backbone, [f.float() for f in found], [f.detach().sign() for f in found]))
        features.append([f.detach().float() for f in found])
    for ours, theirs in zip(features[1], features[0], strict=True):
        assert (ours - theirs).square().mean().sqrt() < 0.05 * theirs.square().mean().sqrt()
    for name, exact in of_weights[0].items():
        if exact.dim() == 5:  # what stands before a norm has no gradient worth comparing
            assert (of_weights[1][name] - exact).square().mean().sqrt() < 0.3 * exact.square().mean().sqrt(), name


@pytest.mark.parametrize("name", CASES)
def test_the_work_is_what_is_counted(name):
    """Floating point operations, counted by torch, fall as `work_share` says; and with blocks of the stride by 1/4."""
    backbone, image, hidden, block = prepared(name, torch.float32)
    d, h, w = image.shape[2:]
    scales = ActiveScales(hidden, block, (d, h, w))
    n = len(backbone.strides)
    for choice in (None, [i < 2 for i in range(n)]):
        with torch.no_grad(), FlopCounterMode(display=False) as sparse:
            encode_visible(backbone, image, hidden, block, choice)
        with torch.no_grad(), FlopCounterMode(display=False) as dense:
            backbone.encode(image)
        share = sparse.get_total_flops() / dense.get_total_flops()
        assert share == pytest.approx(work_share(backbone, scales, choice), rel=1e-6)


def test_with_blocks_of_the_stride_the_work_is_the_visible_share():
    with torch.device("meta"):
        backbone = ResEncUNet("L")
    hidden = draw((128, 128, 160), (32, 32, 32), 0.75, samples=1)
    scales = ActiveScales(hidden, (32, 32, 32), (128, 128, 160))
    assert work_share(backbone, scales, [True] * 6) == pytest.approx(0.25, abs=1e-9)
    assert work_share(backbone, scales) < 0.26
    assert choices(backbone, scales) == [True] * 5 + [False], "tiles of one voxel do not pay, and are next to nothing"
    assert choices(backbone, scales, [False] * 6) == [False] * 6


def test_least_active_is_a_bound():
    for size, block, stride in [((16, 32, 24), (8, 8, 8), (8, 8, 8)), ((16, 32, 24), (4, 4, 4), (8, 8, 8)),
                                ((16, 24, 40), (8, 16, 16), (4, 8, 8)), ((24, 24, 16), (12, 6, 8), (8, 8, 8)),
                                ((8, 32, 64), (2, 8, 16), (1, 32, 32))]:  # fmt: skip
        for ratio in (0.5, 0.8, 0.95):
            hidden = draw(size, block, ratio, samples=1)
            visible = int((~hidden).sum())
            (found,) = ActiveScales(hidden, block, size).at(stride).rows
            assert 1 <= least_active(visible, block, stride, size) <= found
    assert least_active(16, (32, 32, 32), (32, 32, 32), (128, 128, 128)) == 16
    assert least_active(16, (16, 16, 16), (32, 32, 32), (128, 128, 128)) == 2


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"norm_op": "torch.nn.BatchNorm3d"}, "BatchNorm3d"),
        ({"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.1}}, "Dropout3d"),
        ({"norm_op_kwargs": {"affine": True, "track_running_stats": True}}, "InstanceNorm3d"),
    ],
)
def test_what_cannot_be_run_is_refused(changes, word):
    with pytest.raises(ValueError, match=f"^ResEncUNet: its encoder holds {word}") as caught:
        encoder_steps(resenc(**changes))
    assert "\n" not in str(caught.value)


def test_a_single_visible_voxel_is_refused():
    backbone, image, hidden, block = prepared("total stride")
    hidden = torch.ones_like(hidden)
    hidden[:, 0, 0, 0] = False
    with pytest.raises(ValueError, match="single visible voxel"):
        encode_visible(backbone, image, hidden, block)


def test_statistics_of_many_voxels_are_exact():
    """A hundred thousand rows, far from zero: float32 sums taken one by one would be wrong in the fourth digit."""
    scales = ActiveScales(torch.zeros((2, 1, 1, 1), dtype=torch.bool), (32, 64, 64), (32, 64, 64))
    active = scales.at((1, 1, 1))
    norm = nn.InstanceNorm3d(2, affine=True)
    rows = 5 + torch.randn(len(active.voxels), 2)
    found = normalise(rows, norm, active)
    for part, ours in zip(rows.double().split(active.rows), found.split(active.rows), strict=True):
        exact = (part - part.mean(0)) / (part.var(0, unbiased=False) + norm.eps).sqrt()
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=5e-6)


@pytest.mark.slow
def test_resenc_l_in_float32():
    """The whole network at its own depth: 1e-5 at every scale, the coarsest with five visible voxels included."""
    backbone = ResEncUNet("L")
    randomise(backbone)
    size, block = (64, 64, 96), (32, 32, 32)
    image, hidden = torch.randn((1, 1, *size)), draw(size, block, 0.6, samples=1)
    with torch.no_grad():
        expected = reference(backbone, image, hidden, block)
        for choice in (None, [True] * 6):
            found = encode_visible(backbone, image, hidden, block, choice)
            for i, theirs in enumerate(expected):
                torch.testing.assert_close(found.dense(i), theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())
