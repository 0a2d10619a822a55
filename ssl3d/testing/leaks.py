"""Leak tests of masked tasks, from outside: what the network can see, and what the loss counts, found by gradient.

Nothing here knows how a task hides voxels. Every module of the task is watched, so that a wrong order of tokens, a stem
that looks beyond its patch or a mask that arrives too late show themselves, whoever made the mistake:

check_masked_task(MAE(ViT("tiny"), (32, 48, 64)), batch)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ssl3d.regions import RegionBatch
from ssl3d.tasks.cut_out import CutOut
from ssl3d.tasks.masking import BlockMask
from ssl3d.tasks.task import PretextTask


def check_masked_task(task: PretextTask, batch: RegionBatch) -> None:
    """AssertionError naming the leak unless a masked task hides exactly what it counts. `batch`: normalised, float32.

    Four things, for every sample: the prediction depends on all visible voxels, and what any module returns depends,
    bit for bit, on no hidden one; the loss compares with the image on the hidden, valid voxels and nowhere else; it
    counts the prediction there and nowhere else; and the share of hidden blocks is the one asked for. The task keeps
    its mask in `task.mask`; its prediction is what `task.predict`, or else the module `task.rebuild`, returns; it has
    no augmentation.
    """
    mask = getattr(task, "mask", None)
    assert isinstance(mask, (BlockMask, CutOut)), f"{type(task).__name__}: task.mask is no BlockMask and no CutOut"
    assert getattr(task, "augment", None) is None, "leaks are looked for without augmentation"
    assert batch.size == task.input_size, f"{batch.size} voxels given, the network sees {task.input_size}"
    hidden = mask.voxels(mask.draw(batch), batch.size)
    valid = batch.valid_mask().expand_as(hidden)
    with fixed_mask(task, batch):
        visible, counted = used_and_counted(task, batch)
        agree(visible, ~hidden.expand_as(visible), "the prediction is made from", "the mask leaves visible")
        agree(counted, (hidden & valid).expand_as(counted), "the loss counts predictions at", "are hidden and valid")
        features, compared = features_and_compared(task, batch)
        agree(compared, (hidden & valid).expand_as(compared), "the loss compares with", "are hidden and valid")
        noise = 1e3 * torch.randn(batch.image.shape, generator=torch.Generator().manual_seed(5))
        others, _ = features_and_compared(task, batch.replace(image=torch.where(hidden, noise, batch.image)))
        assert [name for name, _ in features] == [name for name, _ in others]
        leaking = {name: None for (name, a), (_, b) in zip(features, others) if not torch.equal(a, b)}
        assert not leaking, f"hidden voxels change what these return: {list(leaking)[:5]}"
    check_ratio(mask, visible)


def check_ratio(mask: BlockMask | CutOut, visible: Tensor) -> None:
    """AssertionError unless round(ratio * blocks) blocks of every sample are hidden in `visible` (B,C,D,H,W).

    Of cut-outs: the share and at most one box more.
    """
    d, h, w = visible.shape[2:]
    if isinstance(mask, CutOut):
        excess = (~visible).flatten(1).double().mean(1) - mask.share
        box = math.prod(max(1, round(n * mask.edges[1])) for n in (d, h, w)) / (d * h * w)
        assert (excess >= 0).all() and (excess < box).all(), f"{(excess + mask.share).tolist()} is hidden"
        return
    blocks = math.prod(mask.grid((d, h, w)))
    assert blocks * math.prod(mask.block) == d * h * w, "blocks must tile the patch for the ratio to be seen"
    found = ((~visible).flatten(1).double().mean(1) * blocks).round().tolist()
    assert set(found) == {round(mask.ratio * blocks)}, f"{found} of {blocks} blocks are hidden, ratio {mask.ratio}"


def used_and_counted(task: PretextTask, batch: RegionBatch) -> tuple[Tensor, Tensor]:
    """(B,C,D,H,W) bool, twice: the voxels the prediction depends on, and those whose prediction enters the loss."""
    image = batch.image.clone().requires_grad_()
    with captured_prediction(task) as predictions:
        loss = loss_of(task, batch.replace(image=image))
    assert len(predictions) == 1 and predictions[0].shape == image.shape, "one prediction, shaped as the image"
    (counted,) = torch.autograd.grad(loss, predictions[0], retain_graph=True)
    (used,) = torch.autograd.grad(predictions[0].square().sum(), image)
    return used != 0, counted != 0


def features_and_compared(task: PretextTask, batch: RegionBatch) -> tuple[list[tuple[str, Tensor]], Tensor]:
    """[(module, what it returned)] of every call, in order; and (B,C,D,H,W) bool: the voxels the loss compares with.

    Nothing passes through a module with its gradient: what of it reaches the image is the target's alone.
    """
    found: list[tuple[str, Tensor]] = []

    def keep(name: str, output: Tensor) -> Tensor:
        found.append((name, output.detach().clone()))
        return output.detach()

    image = batch.image.clone().requires_grad_()
    with watched(task, keep):
        loss = loss_of(task, batch.replace(image=image))
    called = {name for name, _ in found}
    assert any(name.startswith("backbone.") for name in called), f"no module of the backbone was called, of {called}"
    (compared,) = torch.autograd.grad(loss, image)
    return found, compared != 0


def agree(found: Tensor, expected: Tensor, what: str, rule: str) -> None:
    """AssertionError with numbers when two sets of voxels (bool) differ."""
    wrong, missing = (found & ~expected).sum().item(), (expected & ~found).sum().item()
    assert wrong == missing == 0, f"{what} {wrong} voxels that are not among those that {rule}, and misses {missing}"


def loss_of(task: PretextTask, batch: RegionBatch) -> Tensor:
    """The loss, with what a task may draw globally (dropout) held fixed."""
    torch.manual_seed(1)
    return task(batch)["loss"]


@contextmanager
def watched(task: PretextTask, each: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Give what every module of the task (not the task itself) returns to `each`, and go on with its answer."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda module, given, output: _mapped(output, lambda tensor: each(name, tensor))

    handles = [m.register_forward_hook(hook(name)) for name, m in task.named_modules() if m is not task]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mapped(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`output` with every tensor in it, at any depth, replaced."""
    if isinstance(output, Tensor):
        return function(output) if output.is_floating_point() else output
    if isinstance(output, dict):
        return {key: _mapped(value, function) for key, value in output.items()}
    if isinstance(output, (list, tuple)):
        return type(output)(_mapped(value, function) for value in output)
    return output


@contextmanager
def fixed_mask(task: PretextTask, batch: RegionBatch) -> Iterator[None]:
    """The mask of `batch` whatever the image: a strategy may look at it, and what is hidden is not to change."""
    mask = task.mask
    assert isinstance(mask, (BlockMask, CutOut))
    blocks = mask.draw(batch)
    mask.draw = lambda batch: blocks.clone()  # type: ignore[method-assign]
    try:
        yield
    finally:
        del mask.draw


@contextmanager
def captured_prediction(task: PretextTask) -> Iterator[list[Tensor]]:
    """A list that fills with what `task.predict`, or else the module `task.rebuild`, returns."""
    found: list[Tensor] = []
    predict = getattr(task, "predict", None)
    if predict is not None:

        def keep(*args: Any, **kwargs: Any) -> Tensor:
            found.append(predict(*args, **kwargs))
            return found[-1]

        task.predict = keep  # type: ignore[assignment]
        try:
            yield found
        finally:
            del task.predict
        return
    rebuild = getattr(task, "rebuild", None)
    assert isinstance(rebuild, nn.Module), f"{type(task).__name__} has neither predict() nor a module named rebuild"
    handle = rebuild.register_forward_hook(lambda module, given, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()
