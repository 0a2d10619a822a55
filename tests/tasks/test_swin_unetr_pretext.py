"""SwinUNETRPretext: turns, cut-outs, its three losses against twins, and the suite, on anisotropic patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl3d.augment import Brightness, Compose, SpatialTransform
from ssl3d.models.resnet import ResNet
from ssl3d.models.swin import SwinUNETR
from ssl3d.models.vit import ViT
from ssl3d.tasks.cut_out import CutOut
from ssl3d.tasks.swin_unetr_pretext import CoarseDecoder, SwinUNETRPretext, turn
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE, SPACING = (8, 16, 16), (3.0, 0.8, 0.8)
HALF = (8, 16, 24)  # unlike rows and columns: half turns only


def views() -> Compose:
    return Compose([SpatialTransform(flip_axes=[0, 2], rotation=15, p_rotation=1, shift=0.2), Brightness(p=1)])


def make(backbone=None, size=SIZE, **values) -> SwinUNETRPretext:
    torch.manual_seed(0)
    return SwinUNETRPretext(backbone or TinyUNet(2), size, **{"out_dim": 8} | values)


def batch_for(task: SwinUNETRPretext, batch: int = 2, spacing=SPACING, padded: int = 0):
    return make_batch(task.region.size, batch, task.backbone.in_channels, spacing, padded)


class TestSwinUNETRPretext(TaskTests):
    overfit_steps = 150

    def make_task(self):
        return make(augment=views())

    def make_batch(self, task):
        return batch_for(task, padded=2)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_cut_outs_are_boxes_that_hide_their_share(share):
    batch = make_batch((16, 32, 48), batch=6)
    hidden = CutOut(share, (0.05, 0.25)).draw(batch)
    shares = hidden.flatten(1).double().mean(1)
    assert hidden.shape == (6, 1, 16, 32, 48) and (shares >= share).all() and (shares < share + 0.25**3).all()
    again = CutOut(share, (0.05, 0.25)).draw(batch[3:4])
    assert torch.equal(again[0], hidden[3]) and not torch.equal(hidden[0], hidden[1])
    one = CutOut(1e-6, (0.25, 0.25)).draw(batch)  # a single box
    assert (one.flatten(1).sum(1) == 4 * 8 * 12).all()
    for axis in (2, 3, 4):
        line = one.any(dim=[a for a in (1, 2, 3, 4) if a != axis])
        assert ((line[:, 1:] != line[:, :-1]).sum(1) <= 2).all(), "boxes are connected along every axis"


def test_published_cut_outs_are_up_to_the_share():
    batch = make_batch((16, 32, 32), batch=1)._map(lambda t: t.expand(60, *t.shape[1:])).replace(seed=torch.arange(60))
    shares = CutOut(0.3, (0.05, 0.25), published=True).draw(batch).flatten(1).float().mean(1)
    assert shares.max() < 0.3 + 0.25**3 and shares.min() < 0.05 and 0.09 < shares.mean() < 0.19


def test_views_are_exact_turns_about_z():
    """Each view is the region turned by its angle: recomputed voxel by voxel from world coordinates in the plane."""
    task = make()
    batch = batch_for(task, batch=12, padded=3)
    turned, angle = task.views(batch)
    assert set(angle.tolist()) == {0, 1, 2, 3} and turned.image.shape == (24, 2, *SIZE)
    centre = (SIZE[1] - 1) / 2
    y, x = np.meshgrid(np.arange(16) - centre, np.arange(16) - centre, indexing="ij")
    for number, k in enumerate(angle.tolist()):
        source = batch.image[number % 12].numpy()
        cos, sin = round(np.cos(k * np.pi / 2)), round(np.sin(k * np.pi / 2))
        ys, xs = (cos * y + sin * x + centre).astype(int), (-sin * y + cos * x + centre).astype(int)
        assert np.array_equal(turned.image[number].numpy(), source[:, :, ys, xs])
        assert np.array_equal(turned.valid[number].numpy(), batch.valid[number % 12].numpy()[:, :, ys, xs])
    for k in range(4):
        assert torch.equal(turn(batch.image, torch.full((12,), k)), batch.image.rot90(k, (3, 4)))
    uneven = torch.arange(2 * 24.0).view(2, 1, 2, 3, 4)
    assert torch.equal(turn(uneven, torch.tensor([0, 2])), torch.stack([uneven[0], uneven[1].rot90(2, (2, 3))]))


def test_stretched_voxels_are_turned_by_half_turns_alone():
    """A sample's quarter turn would stretch it where in-plane spacings differ; equal ones keep all four angles."""
    task = make()
    batch = batch_for(task, batch=40)
    spacing = batch.spacing.clone()
    spacing[20:, 2] = 1.0
    _, angle = task.views(batch.replace(spacing=spacing))
    angle = angle.view(2, 40)
    assert set(angle[:, :20].flatten().tolist()) == {0, 1, 2, 3} and set(angle[:, 20:].flatten().tolist()) == {0, 2}
    _, angle = make(size=HALF, rotations=2).views(make_batch(HALF, batch=20, channels=2))
    assert set(angle.tolist()) == {0, 1}


@pytest.mark.parametrize("parity", [False, True])
def test_losses_equal_their_numpy_twins(parity):
    task = make(TinyUNet(2), parity=parity, rebuild_weight=2.0, rotation_weight=3.0, contrast_weight=5.0).double()
    batch = batch_for(task, batch=4, padded=3)
    batch = batch.replace(image=batch.image.double())
    outputs = {}
    for name in ("rebuild", "tell_angle", "embed"):
        getattr(task, name).register_forward_hook(lambda m, i, o, name=name: outputs.update({name: o.detach().numpy()}))
    result = task(batch)
    turned, angle = task.views(batch)
    hidden, valid, image = task.mask.draw(turned).numpy(), turned.valid_mask().numpy(), turned.image.numpy()
    counted = valid if parity else hidden & valid
    error = np.abs(outputs["rebuild"] - image)
    rebuild = np.mean([np.concatenate([error[b, c][counted[b, 0]] for c in range(2)]).mean() for b in range(8)])
    logits, z = outputs["tell_angle"], outputs["embed"]
    rotation = np.mean([np.log(np.exp(row).sum()) - row[k] for row, k in zip(logits, angle.tolist())])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    terms = []
    for i in range(8):
        similar = np.exp(z @ z[i] / 0.5)
        terms.append(-np.log(similar[(i + 4) % 8] / (similar.sum() - similar[i])))
    for name, twin in (("rebuild", rebuild), ("rotation", rotation), ("contrast", np.mean(terms))):
        np.testing.assert_allclose(result[name].item(), twin, rtol=1e-9)
    total = 2 * rebuild + 3 * rotation + 5 * np.mean(terms)
    np.testing.assert_allclose(result["loss"].item(), total, rtol=1e-9)


def test_a_pair_is_the_same_scan_and_chance_is_what_an_untaught_head_scores():
    task = make()
    task.tell_angle.weight.data.zero_()
    task.tell_angle.bias.data.zero_()
    result = task(batch_for(task, batch=3))
    assert abs(result["rotation"].item() - np.log(4)) < 1e-6
    task.embed.forward = lambda x: torch.eye(3).repeat(2, 1)  # both views of a scan alike, all others at right angles
    contrast = task(batch_for(task, batch=3))["contrast"].item()
    assert abs(contrast - np.log(1 + 4 * np.exp(-2))) < 1e-6


def test_what_is_cut_out_is_filled():
    for parity in (False, True):
        task = make(parity=parity)
        turned, _ = task.views(batch_for(task, batch=3))
        hidden = task.mask.draw(turned).expand_as(turned.image)
        filled = task.fill(turned, hidden)
        assert torch.equal(filled[~hidden], turned.image[~hidden])
        if parity:
            assert filled[hidden].std() > 0.1 and filled[hidden].abs().max() <= 2  # noise between low and high
        else:
            assert (filled[hidden] == 0).all()


def test_published_heads_read_one_cell_each():
    features = [torch.arange(2 * 3 * 4.0).view(2, 3, 1, 2, 2)]
    angle, contrast = make(parity=True).summaries(features)
    assert torch.equal(angle, features[0][:, :, 0, 0, 0]) and torch.equal(contrast, features[0][:, :, 0, 0, 1])


def test_backbones_without_a_decoder_and_coarse_scales():
    task = make(ResNet(10, width=0.125), (32, 64, 64))
    assert isinstance(task.rebuild, CoarseDecoder) and not task.needs_decoder
    task(batch_for(task))["loss"].backward()
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)
    decoder = CoarseDecoder(16, (1, 4, 8), 2)
    assert decoder([torch.zeros(1, 16, 6, 4, 3)], (6, 16, 24)).shape == (1, 2, 6, 16, 24)


def test_published_form_on_swin_trains_what_it_reads():
    """The coarsest scale alone, whatever the backbone pools: DDP would wait for the others' gradients."""
    task = make(SwinUNETR("tiny", pooling="voco"), (32, 32, 64), rotations=2, parity=True)
    task(batch_for(task, batch=1))["loss"].backward()
    trained = {n for n, p in task.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in task.named_parameters() if p.grad is not None}
    assert "backbone.swinViT.patch_embed.proj.weight" in trained
    assert not any(n.startswith(("backbone.encoder1.", "backbone.decoder")) for n in trained)


def test_pictures():
    result = make()(batch_for(make()), preview=True)
    for name in ("input", "masked", "rebuilt"):
        assert result[f"preview/{name}"].shape == (4, 16, 16), "both views of both samples"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"cutout": 1.0}, "cutout=1.0"), ({"cutout_edges": (0.3, 0.2)}, r"cutout_edges=\[0.3, 0.2\]"),
        ({"size": HALF}, r"patch_size=\[8, 16, 24\]: a quarter turn"), ({"temperature": 0.0}, "temperature=0.0"),
        ({"rotation_weight": -1.0}, "rotation_weight=-1.0"), ({"out_dim": 0}, "out_dim=0"),
        ({"augment": Compose([SpatialTransform()])}, "augment: flips of both in-plane axes"),
        ({"augment": Compose([SpatialTransform([0], rotation=60)])}, "augment: rotations by 45 degrees"),
        ({"size": (8, 17, 17)}, "patch_size: "),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(values, key):
    with pytest.raises(ValueError, match=f"^{key}"):
        make(ViT("tiny", patch_size=(2, 4, 4)), **values)
