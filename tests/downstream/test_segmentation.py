"""Dice + cross-entropy against numpy, what is left out of the loss, and the objective around a backbone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapes_store import NETWORK, write_run

from downstream.finetune import recipe
from downstream.segmentation import Segmentation, dice_ce
from ssl3d import config
from ssl3d.models.heads import StageHead, VoxelHead, make_head
from ssl3d.models.resenc import ResEncUNet
from ssl3d.regions import RegionBatch

SHAPE = (4, 6, 10)


def numpy_dice_ce(logits: np.ndarray, target: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """The slow twin, in float64: loops over classes and voxels that count."""
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    losses, dices = [], []
    for b, z, y, x in np.argwhere(known):
        losses.append(-np.log(p[b, target[b, z, y, x], z, y, x]))
    for k in range(1, logits.shape[1]):
        overlap = sum(p[(i[0], k, *i[1:])] for i in np.argwhere(known & (target == k)))
        total = sum(p[(i[0], k, *i[1:])] for i in np.argwhere(known)) + (known & (target == k)).sum()
        dices.append(1 - (2 * overlap + 1e-5) / (total + 1e-5))
    return float(np.mean(dices)), float(np.mean(losses))


def batch(seed: int = 0, size=SHAPE, label_values=(0, 3, 7)) -> RegionBatch:
    g = torch.Generator().manual_seed(seed)
    one = torch.ones(2, 1)
    return RegionBatch(
        image=torch.randn(2, 1, *size, generator=g),
        slope=one, intercept=one, low=one, high=one, mean=one, std=one,
        start=torch.zeros(2, 3, dtype=torch.long), volume_shape=torch.tensor([list(size)] * 2),
        spacing=torch.ones(2, 3), affine=torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
        foreground_box=torch.zeros(2, 2, 3, dtype=torch.long), volume=torch.zeros(2, dtype=torch.long),
        seed=torch.arange(2),
        label=torch.tensor(label_values)[torch.randint(len(label_values), (2, 1, *size), generator=g)],
    )  # fmt: skip


def objective(size=(8, 16, 12), **options) -> Segmentation:
    torch.manual_seed(0)
    return Segmentation(ResEncUNet("S", 1, NETWORK), size, [3, 7], **options)


def test_loss_equals_numpy():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(2, 3, *SHAPE)), rng.integers(0, 3, (2, *SHAPE))
    known = rng.random((2, *SHAPE)) > 0.3
    found = dice_ce(torch.from_numpy(logits), torch.from_numpy(target), torch.from_numpy(known))
    assert all(v.dtype == torch.float64 for v in found)
    assert [float(v) for v in found] == pytest.approx(numpy_dice_ce(logits, target, known), abs=1e-12)


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.randn(1, 3, *SHAPE).bfloat16()
    dice, cross_entropy = dice_ce(logits, torch.zeros(1, *SHAPE, dtype=torch.long), torch.ones(1, *SHAPE) > 0)
    assert dice.dtype == cross_entropy.dtype == torch.float32


def test_a_batch_without_known_voxels_costs_nothing():
    logits = torch.randn(1, 3, *SHAPE, requires_grad=True)
    dice, cross_entropy = dice_ce(logits, torch.ones(1, *SHAPE, dtype=torch.long), torch.zeros(1, *SHAPE) > 0)
    (dice + cross_entropy).backward()
    assert dice.item() == cross_entropy.item() == 0 and not logits.grad.any()


def test_ignored_and_invalid_voxels_have_no_gradient():
    task = objective(ignore=255)
    b = batch(size=(8, 16, 12), label_values=(0, 3, 7, 255))
    valid = torch.rand(2, 1, 8, 16, 12) > 0.3
    captured = []
    task.head.register_forward_hook(lambda m, i, o: captured.append(o) or o.retain_grad())
    task(b.replace(valid=valid))["loss"].backward()
    out = (~valid | (b.label == 255))[:, 0]
    gradient = captured[0].grad.abs().sum(dim=1)
    assert not gradient[out].any() and (gradient[~out] > 0).all()


def test_label_values_become_indices_and_the_rest_background():
    label = torch.tensor([0, 3, 7, 5, 200, 3]).reshape(1, 1, 1, 2, 3)
    assert objective().target(label).flatten().tolist() == [0, 1, 2, 0, 0, 1]


def test_it_learns_a_batch():
    task = objective()
    b = batch(size=(8, 16, 12))
    image = (b.label == 3).float() * 3 - (b.label == 7).float() * 3 + 0.1 * b.image
    b = b.replace(image=image)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        out = task(b)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(float(out["loss"]))
    assert losses[-1] < 0.4 * losses[0]
    pictures = {k: v for k, v in task(b, preview=True).items() if k.startswith("preview/")}
    assert set(pictures) == {"preview/input", "preview/reference", "preview/prediction"}
    assert all(p.shape == (2, 16, 12) and p.min() >= 0 and p.max() <= 1 for p in pictures.values())


@pytest.mark.parametrize(
    ("options", "word"),
    [({"classes": [0, 1]}, "classes"), ({"classes": [1, 1]}, "classes"), ({"ignore": 3}, "ignore"),
     ({"labelled_share": 1.5}, "labelled_share"), ({"patch_size": (8, 15, 12)}, "axis H")],
)  # fmt: skip
def test_values_out_of_range_are_named(options, word):
    values = {"patch_size": (8, 16, 12), "classes": [3, 7]} | options
    with pytest.raises(ValueError, match=word):
        Segmentation(ResEncUNet("S", 1, NETWORK), **values)


def test_no_label_is_an_error():
    with pytest.raises(ValueError, match="needs labels"):
        objective()(batch(size=(8, 16, 12)).replace(label=None))


def test_a_stage_head_is_a_linear_layer_on_upsampled_features():
    torch.manual_seed(0)
    features = [torch.randn(2, c, *size) for c, size in ((3, (4, 8, 6)), (5, (2, 4, 3)), (2, (2, 2, 2)))]
    head = StageHead([3, 5, 2], 4)
    weight = torch.cat([p.weight[:, :, 0, 0, 0] for p in head.projections], dim=1)
    full = torch.cat([torch.nn.functional.interpolate(f, (4, 8, 6), mode="trilinear") for f in features], dim=1)
    expected = torch.einsum("kf,bfdhw->bkdhw", weight, full) + head.projections[0].bias[None, :, None, None, None]
    torch.testing.assert_close(head(features, (4, 8, 6)), expected)


def test_a_backbone_without_a_decoder_gets_a_head_on_its_encoder():
    backbone = ResEncUNet("S", 1, NETWORK)
    assert isinstance(make_head(backbone, 3), VoxelHead)
    backbone.decoder_channels = ()
    assert isinstance(make_head(backbone, 3), StageHead)


def test_arms_differ_in_the_encoder_only(cell_of, tmp_path):
    """Scratch and run share head, decoder and every setting; with transfer=encoder only the encoder is loaded."""
    run = write_run(tmp_path / "mae", seed=5)
    context, scratch = cell_of("scratch", run)
    _, other = cell_of("mae", run)
    one, two = (recipe(context, context.measure(c), c) for c in (scratch, other))
    assert one["model"].pop("init") is None and two["model"].pop("init") == str(run)
    assert one["run"].pop("dir") != two["run"].pop("dir")
    assert one == two
    from ssl3d.loop import _objective

    new = tmp_path / "new"  # a folder that no run has begun in
    a, b = (_objective(config.load(recipe(context, context.measure(cell), cell)), new)[0] for cell in (scratch, other))
    encoder = a.backbone.encoder_parameter_names()
    differing = {n for n, v in a.state_dict().items() if not torch.equal(v, b.state_dict()[n])}
    assert differing and all(n.removeprefix("backbone.") in encoder for n in differing)
