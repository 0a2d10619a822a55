"""SimMIM: no leak, the loss where it belongs, and the suite, on a non-cubic anisotropic patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl3d.models.vit import ViT
from ssl3d.tasks.simmim import SimMIM
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE, BLOCK = (8, 16, 24), (4, 4, 8)


def make(in_channels: int = 1) -> SimMIM:
    return SimMIM(ViT("tiny", in_channels=in_channels, patch_size=(2, 4, 4)), SIZE, mask_block=BLOCK)


class TestSimMIM(TaskTests):
    overfit_steps, overfit_lr = 200, 3e-3

    def make_task(self) -> SimMIM:
        return make(2)


def test_hidden_voxels_change_nothing_and_visible_ones_do():
    task, batch = make().eval(), make_batch(SIZE, padded=3)
    blocks = task.mask.draw(batch)
    hidden = task.mask.voxels(blocks, SIZE)
    with torch.no_grad():
        first = task.predict(batch.image, blocks)
        assert torch.equal(first, task.predict(torch.where(hidden, 99.0, batch.image), blocks))
        assert not torch.equal(first, task.predict(torch.where(hidden, batch.image, 99.0), blocks))


def test_voxels_seen_are_the_complement_of_those_in_the_loss():
    """By gradient: what the prediction depends on, and what the loss depends on, on a non-cubic grid."""
    task, batch = make(), make_batch(SIZE, padded=3)
    hidden = task.mask.voxels(task.mask.draw(batch), SIZE)
    image = batch.image.clone().requires_grad_()
    task.predict(image, task.mask.draw(batch)).square().sum().backward()
    assert image.grad is not None and torch.equal(image.grad != 0, ~hidden)
    prediction = torch.randn(batch.image.shape, requires_grad=True)
    task.predict = lambda image, blocks: prediction  # type: ignore[method-assign]
    loss = task(batch)["loss"]
    loss.backward()
    assert batch.valid is not None and prediction.grad is not None
    counted = hidden & batch.valid
    assert torch.equal(prediction.grad != 0, counted)
    difference = np.abs((prediction - batch.image).detach().double().numpy())
    twin = np.mean([difference[b][counted[b].numpy()].mean() for b in range(2)])
    assert abs(loss.item() - twin) < 1e-6


def test_the_mask_token_is_trained_and_stands_only_at_hidden_places():
    task, batch = make(), make_batch(SIZE)
    given = []
    run = task.backbone.encode_embedded
    task.backbone.encode_embedded = lambda t, g, coarsest: given.append(t.detach()) or run(t, g, coarsest)  # type: ignore[method-assign]
    blocks = task.mask.draw(batch)
    task(batch)["loss"].backward()
    assert task.mask_token.grad is not None and task.mask_token.grad.abs().max() > 0
    tokens = blocks.repeat_interleave(2, 1).repeat_interleave(1, 2).repeat_interleave(2, 3).flatten(1)
    assert torch.equal((given[0] == task.mask_token.detach()).all(-1), tokens)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="no patch embedding to replace"):
        SimMIM(TinyUNet(), SIZE)
    with pytest.raises(ValueError, match=r"^mask_block=\[3, 4, 8\]: must be a multiple"):
        SimMIM(ViT("tiny", patch_size=(2, 4, 4)), SIZE, mask_block=(3, 4, 8))
    with pytest.raises(ValueError, match=r"^patch_size"):
        SimMIM(ViT("tiny", patch_size=(2, 4, 4)), (8, 16, 25), mask_block=(2, 4, 4))
