"""MAE: no leak, the loss where it belongs, and the conformance suite, on a non-cubic anisotropic patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl3d.augment import Brightness, Compose, SpatialTransform
from ssl3d.losses.masked import masked_mse
from ssl3d.models.backbone import Backbone
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.vit import ViT
from ssl3d.regions import RegionBatch
from ssl3d.tasks.mae import MAE
from ssl3d.tasks.tokens import TokenDecoder, unpatchify
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

PATCH = (16, 32, 48)
BLOCK = (4, 8, 8)
SMALL = {"patch_size": (8, 16, 24), "mask_block": (2, 4, 4)}


def small_resenc() -> ResEncUNet:
    kwargs = {"n_stages": 3, "features_per_stage": [8, 16, 16], "n_blocks_per_stage": [1, 1, 1]}
    return ResEncUNet("S", arch_kwargs=kwargs)


def tiny_vit() -> ViT:
    return ViT("tiny", patch_size=(2, 4, 4))


def hidden_voxels(task: MAE, batch: RegionBatch) -> Tensor:
    return task.mask.voxels(task.mask.draw(batch), task.input_size)


class TestMAE(TaskTests):
    def make_task(self) -> MAE:
        return MAE(TinyUNet(), **SMALL)


class TestMAEOnResEnc(TaskTests):
    overfit_lr = 3e-3

    def make_task(self) -> MAE:
        return MAE(small_resenc(), **SMALL)


class TestMAEOnTokens(TaskTests):
    def make_task(self) -> MAE:
        return MAE(tiny_vit(), decoder_dim=32, decoder_depth=1, **SMALL)


class TestMAEWithAugmentation(TaskTests):
    def make_task(self) -> MAE:
        augment = Compose([SpatialTransform(p_rotation=1, p_scale=1, rotation=20), Brightness(p=1)])
        return MAE(TinyUNet(in_channels=2), augment=augment, **SMALL)


class Recorder:
    """Remembers what the encoder was given and what it returned."""

    def __init__(self, backbone: Backbone) -> None:
        self.seen: list[Tensor] = []
        encode = backbone.encode

        def record(x: Tensor) -> list[Tensor]:
            features = encode(x)
            self.seen += [x.detach().clone(), *(f.detach().clone() for f in features)]
            return features

        backbone.encode = record  # type: ignore[method-assign]


@pytest.mark.parametrize("make", [TinyUNet, small_resenc])
def test_nothing_of_hidden_voxels_reaches_the_network(make):
    batch = make_batch(PATCH, padded=5)
    task = MAE(make(), PATCH, mask_block=BLOCK)
    hidden = hidden_voxels(task, batch)
    changed = batch.replace(image=torch.where(hidden, 1e3 * torch.randn(batch.image.shape), batch.image))
    assert not torch.equal(changed.image, batch.image)
    seen = []
    for b in (batch, changed):
        recorder = Recorder(task.backbone)
        task(b)
        seen.append(recorder.seen)
    assert len(seen[0]) >= 1 + len(task.backbone.channels)
    for before, after in zip(seen[0], seen[1]):
        assert torch.equal(before, after), "hidden voxels leak"
    visible_changed = batch.replace(image=torch.where(hidden, batch.image, batch.image + 1))
    recorder = Recorder(task.backbone)
    task(visible_changed)
    assert not torch.equal(recorder.seen[1], seen[0][1]), "the test must be able to see a leak"


def test_tokens_the_encoder_sees_are_the_complement_of_the_loss():
    """Found by gradient on a non-cubic grid: a transposed token order shows here."""
    batch = make_batch(PATCH)
    task = MAE(ViT("tiny", patch_size=(4, 4, 8)), PATCH, mask_block=BLOCK, decoder_dim=32, decoder_depth=1)
    assert isinstance(task.rebuild, TokenDecoder)
    image = batch.image.clone().requires_grad_()
    blocks = task.mask.draw(batch)
    task.predict(image, blocks).square().sum().backward()
    assert image.grad is not None
    assert torch.equal(image.grad != 0, ~hidden_voxels(task, batch))
    seen: list[Tensor] = []
    run = task.backbone.blocks
    task.backbone.blocks = lambda tokens, *a, **k: seen.append(tokens) or run(tokens, *a, **k)  # type: ignore
    hidden = hidden_voxels(task, batch)
    task(batch)
    task(batch.replace(image=torch.where(hidden, 99.0, batch.image)))
    assert seen[0].shape[1] == (~hidden[0]).sum() / (4 * 4 * 8), "only visible tokens are encoded"
    assert torch.equal(seen[0], seen[1])


def test_rebuilt_tokens_stand_at_their_own_place():
    """With a decoder that passes tokens through, the prediction of a hidden token depends on its place alone."""
    task = MAE(tiny_vit(), (8, 16, 24), mask_block=(2, 4, 4), decoder_dim=32, decoder_depth=1)
    assert isinstance(task.rebuild, TokenDecoder)
    task.rebuild.layers = torch.nn.Identity()  # type: ignore[assignment]
    batch = make_batch((8, 16, 24), batch=2)
    blocks = task.mask.draw(batch)
    with torch.no_grad():
        first, second = task.predict(batch.image, blocks)
    both = hidden_voxels(task, batch).all(0).expand_as(first)
    visible = ~hidden_voxels(task, batch)[0].expand_as(first)
    assert both.any() and torch.equal(first[both], second[both])
    with torch.no_grad():
        changed = task.predict(batch.image + 1, blocks)[0]
    assert (changed[visible] != first[visible]).any() and torch.equal(changed[both], first[both])


def test_gradient_is_zero_exactly_on_visible_and_padded_voxels():
    batch = make_batch(PATCH, padded=5)
    task = MAE(TinyUNet(), PATCH, mask_block=BLOCK)
    prediction = torch.randn(batch.image.shape, requires_grad=True)
    task.predict = lambda image, blocks: prediction  # type: ignore[method-assign]
    task(batch)["loss"].backward()
    assert batch.valid is not None and prediction.grad is not None
    counts = hidden_voxels(task, batch) & batch.valid
    assert (prediction.grad[~counts] == 0).all()
    assert (prediction.grad[counts] != 0).all()
    assert 0.5 < counts.float().mean() < 0.75


def test_loss_equals_its_numpy_twin():
    generator = torch.Generator().manual_seed(3)
    prediction, target = torch.randn((2, 3, 2, 5, 6, 7), generator=generator, dtype=torch.float64)
    where = torch.rand((3, 1, 5, 6, 7), generator=generator) < 0.3
    where[1] = False  # nothing to rebuild in this sample: it is left out of the mean

    def twin(p: np.ndarray, t: np.ndarray, m: np.ndarray) -> float:
        losses = []
        for b in range(len(p)):
            voxels = [(p[b, c][m[b, 0]] - t[b, c][m[b, 0]]) ** 2 for c in range(p.shape[1])]
            if m[b].any():
                losses.append(np.concatenate(voxels).mean())
        return float(np.mean(losses))

    loss = masked_mse(prediction, target, where)
    assert loss.dtype == torch.float64
    assert abs(loss.item() - twin(prediction.numpy(), target.numpy(), where.numpy())) < 1e-12
    assert masked_mse(prediction.bfloat16(), target.bfloat16(), where).dtype == torch.float32
    assert masked_mse(prediction, target, where & False) == 0
    poisoned = torch.where(where, prediction, torch.nan).requires_grad_()
    masked_mse(poisoned, target, where).backward()
    assert poisoned.grad is not None and poisoned.grad.isfinite().all()


def test_logged_shares():
    batch = make_batch(PATCH, padded=12)
    result = MAE(TinyUNet(), PATCH, mask_ratio=0.6, mask_block=8)(batch)
    assert abs(result["masked_share"].item() - round(0.6 * 48) / 48) < 1e-6
    assert abs(result["valid_share"].item() - 0.75) < 1e-6


def test_preview_shows_input_masked_and_rebuilt():
    batch = make_batch(PATCH)
    task = MAE(TinyUNet(), PATCH, mask_block=BLOCK)
    result = task(batch, preview=True)
    hidden = hidden_voxels(task, batch)[:, 0, PATCH[0] // 2]
    pictures = [result[f"preview/{name}"] for name in ("input", "masked", "rebuilt")]
    assert all(p.shape == (2, *PATCH[1:]) for p in pictures)
    given, masked, rebuilt = pictures
    assert (masked[hidden] == 0.5).all() and torch.equal(masked[~hidden], given[~hidden])
    assert torch.equal(rebuilt[~hidden], given[~hidden]) and not torch.equal(rebuilt[hidden], given[hidden])


def test_region_is_the_reach_of_the_augmentation():
    augment = Compose([SpatialTransform(rotation=0, scale=(0.8, 1.25))])
    task = MAE(TinyUNet(), PATCH, mask_block=BLOCK, augment=augment)
    assert task.region.size == (20, 40, 60) and task.input_size == PATCH
    assert MAE(TinyUNet(), 16, mask_block=8).region.size == (16, 16, 16)


@pytest.mark.parametrize(
    "values, key",
    [
        ({"mask_ratio": 1.5}, "mask_ratio=1.5"), ({"mask_block": 64}, "mask_block="),
        ({"decoder_dim": 33, "backbone": ViT("tiny", patch_size=(4, 4, 8))}, "decoder_dim=33"),
        ({"decoder_depth": 0, "backbone": ViT("tiny", patch_size=(4, 4, 8))}, "decoder_depth=0"),
        ({"mask_block": 4, "backbone": ViT("tiny", patch_size=(4, 4, 8))}, "mask_block=.*multiple of the backbone's"),
        ({"patch_size": (16, 31, 48)}, "patch_size: .*axis H is 31"), ({"patch_size": 0}, "patch_size=0"),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(values, key):
    with pytest.raises(ValueError, match=f"^{key}"):
        MAE(**{"backbone": TinyUNet(), "patch_size": PATCH, "mask_block": BLOCK} | values)


def test_refuses_a_backbone_without_a_decoder():
    backbone = TinyUNet()
    backbone.decoder_channels = ()
    with pytest.raises(ValueError, match="no decoder"):
        MAE(backbone, PATCH, mask_block=BLOCK)


def test_unpatchify_inverts_patchify_on_a_non_cubic_grid():
    image = torch.randn(2, 3, 4, 6, 10)
    grid, token = (2, 2, 5), (2, 3, 2)
    tokens = torch.stack(
        [
            image[:, :, 2 * d : 2 * d + 2, 3 * h : 3 * h + 3, 2 * w : 2 * w + 2].flatten(1)
            for d in range(2) for h in range(2) for w in range(5)
        ],
        dim=1,
    )  # fmt: skip
    assert torch.equal(unpatchify(tokens, grid, token), image)
