"""HiEndMAE: the layers it asks, tokens at their places, its loss and a twin, and the suite, on a non-cubic grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl3d.augment import Brightness, Compose, SpatialTransform
from ssl3d.models.primus import Primus, PrimusV2
from ssl3d.models.vit import ViT
from ssl3d.tasks.hi_end_mae import HiEndMAE, InnerLayerDecoder, read_layers
from ssl3d.tasks.targets import normalised_blocks
from ssl3d.tasks.tokens import kept, put_back, take
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = (6, 8, 16)
SMALL = {"patch_size": SIZE, "decoder_dim": 32, "decoder_heads": 2, "decoder_depth": 1}


def make(in_channels: int = 1, **values) -> HiEndMAE:
    torch.manual_seed(0)
    return HiEndMAE(ViT("tiny", in_channels=in_channels, patch_size=(2, 4, 4)), **SMALL | values)


class TestHiEndMAE(TaskTests):
    overfit_steps, overfit_lr = 160, 5e-3

    def make_task(self) -> HiEndMAE:
        augment = Compose([SpatialTransform(p_rotation=1, rotation=20), Brightness(p=1)])
        return HiEndMAE(ViT("tiny", in_channels=2, patch_size=(2, 4, 4)), augment=augment, **SMALL)


def test_layers_are_three_quarters_half_and_a_quarter_of_the_depth():
    assert read_layers(None, 12, parity=False) == [8, 5, 2], "blocks 9, 6 and 3, counted from 0"
    assert read_layers(None, 12, parity=True) == [9, 6, 3], "published: blocks 10, 7 and 4"
    assert read_layers(None, 24, parity=False) == [17, 11, 5] and read_layers(None, 4, parity=False) == [2, 1, 0]
    assert read_layers([1, 12], 12, parity=False) == [0, 11]
    for layers, parity in (([0], False), ([13], False), ([12], True), ([], False)):
        with pytest.raises(ValueError, match=r"^layers=\["):
            read_layers(layers, 12, parity)


@pytest.mark.parametrize(("parity", "numbers"), [(False, (2, 1, 0)), (True, (3, 2, 1))])
def test_the_decoder_asks_these_layers_in_this_order(parity, numbers):
    """What enters each attention is what that block of the encoder returned, for the visible tokens."""
    task, batch = make(parity=parity).eval(), make_batch(SIZE)
    returned: dict[int, torch.Tensor] = {}
    asked: list[torch.Tensor] = []
    for number, block in enumerate(task.backbone.layers):
        block.register_forward_hook(lambda m, i, o, number=number: returned.update({number: o}))
    for answer in task.rebuild.answers:
        answer.register_forward_pre_hook(lambda m, i: asked.append(i[0]))
    with torch.no_grad():
        task(batch)
    assert len(asked) == 3 and asked[0].shape[1] == 24 - 18, "visible tokens only"
    for layer, number in zip(asked, numbers):
        assert torch.equal(layer, returned[number])


def test_every_layer_asked_and_the_mask_token_get_a_gradient():
    task = make()
    task(make_batch(SIZE))["loss"].backward()
    parameters = [task.rebuild.mask_token, *task.rebuild.answers.parameters(), *task.backbone.layers.parameters()]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters if p.ndim > 1)
    # through the inner layers alone: the way over the last layer is cut
    task.zero_grad()
    task.rebuild.enter.requires_grad_(False)
    task.backbone.norm.register_forward_hook(lambda m, i, o: o.detach())
    task(make_batch(SIZE))["loss"].backward()
    first, *_, last = task.backbone.layers
    assert first.qkv.weight.grad.abs().max() > 0 and last.qkv.weight.grad is None


def test_putting_back_inverts_taking():
    tokens = torch.randn(2, 24, 5)
    hidden = torch.rand(2, 24).argsort(1) < 18
    index = kept(hidden, 6)
    again = put_back(take(tokens, index), index, torch.full((1, 1, 5), 7.0), 24)
    assert torch.equal(again[~hidden], tokens[~hidden]) and (again[hidden] == 7).all()


def test_all_tokens_ask():
    """A visible token's prediction depends on the answers too, and each token's on its own place."""
    task, batch = make().eval(), make_batch(SIZE)
    with torch.no_grad():
        before = task.predict(batch.image, task.mask.draw(batch))
        task.rebuild.answers[0][1].bias += 1
        after = task.predict(batch.image, task.mask.draw(batch))
    assert (before != after).float().mean() > 0.99


def test_loss_equals_its_numpy_twin():
    task, batch = make(2), make_batch(SIZE, channels=2, padded=3)
    assert isinstance(task.rebuild, InnerLayerDecoder)
    blocks = task.mask.draw(batch)
    prediction = torch.randn(batch.image.shape, dtype=torch.float64)
    task.predict = lambda image, blocks: prediction  # type: ignore[method-assign]
    batch = batch.replace(image=batch.image.double())
    loss = task(batch)["loss"].item()
    image, valid, terms = batch.image.numpy(), batch.valid_mask().numpy(), []
    for b in range(2):
        errors = []
        for d, h, w in np.argwhere(blocks[b].numpy()):
            place = (slice(2 * d, 2 * d + 2), slice(4 * h, 4 * h + 4), slice(4 * w, 4 * w + 4))
            inside = valid[(b, 0, *place)]
            for c in range(2):
                voxels = image[(b, c, *place)][inside]
                if voxels.size:  # LayerNorm without weights: the biased variance
                    target = (voxels - voxels.mean()) / np.sqrt(voxels.var() + 1e-6)
                    errors.append((prediction[b, c].numpy()[place][inside] - target) ** 2)
        terms.append(np.concatenate(errors).mean())
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-9)


def test_published_layers_are_read_as_they_are():
    assert isinstance(make(parity=True).rebuild.answers[0][0], torch.nn.Identity)
    assert isinstance(make().rebuild.answers[0][0], torch.nn.LayerNorm)


def test_a_perfect_prediction_gives_the_picture_of_the_input():
    """What is shown has each token's mean and deviation put back."""
    task, batch = make(), make_batch(SIZE)
    target = normalised_blocks(batch.image, (2, 4, 4), batch.valid_mask())
    task.predict = lambda image, blocks: target  # type: ignore[method-assign]
    result = task(batch, preview=True)
    assert result["loss"] == 0 and not torch.equal(result["preview/masked"], result["preview/input"])
    torch.testing.assert_close(result["preview/rebuilt"], result["preview/input"])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"decoder_heads": 5}, "decoder_heads=5: must divide decoder_dim=32"), ({"decoder_depth": -1}, "decoder_depth"),
        ({"mask_block": (2, 4, 6)}, r"mask_block=\[2, 4, 6\]: must be a multiple"), ({"layers": (5,)}, r"layers=\[5\]"),
        ({"patch_size": (6, 8, 18)}, "patch_size: .*axis W is 18"), ({"mask_ratio": 1.0}, "mask_ratio=1.0"),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(values, key):
    with pytest.raises(ValueError, match=f"^{key}"):
        make(**values)


def test_takes_token_backbones_only():
    with pytest.raises(ValueError, match=r"^task HiEndMAE: TinyUNet has no token layers"):
        HiEndMAE(TinyUNet(), **SMALL)
    for backbone in (Primus("tiny", input_size=(16, 24, 32)), PrimusV2("tiny", input_size=(16, 24, 32))):
        assert HiEndMAE(backbone, (16, 24, 32), decoder_dim=32, decoder_heads=2).mask.block == (8, 8, 8)
