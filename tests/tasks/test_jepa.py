"""JEPA: blocks on a non-cubic grid, no leak into the context, targets without gradient, a twin, and the suite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssl3d.augment import Brightness, Compose, SpatialTransform
from ssl3d.models.primus import Primus, PrimusV2
from ssl3d.models.vit import ViT
from ssl3d.tasks.jepa import JEPA
from ssl3d.tasks.token_blocks import TokenBlocks, TokenSplit, box_shapes
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE, TOKEN, GRID = (6, 16, 20), (2, 4, 4), (3, 4, 5)
SMALL = {"patch_size": SIZE, "predictor_dim": 32, "predictor_depth": 1}
WIDE = {"target_scale": (0.1, 0.25), "aspect": 2.0}  # blocks of several sizes


def make(in_channels: int = 1, **values) -> JEPA:
    torch.manual_seed(0)
    return JEPA(ViT("tiny", in_channels=in_channels, patch_size=TOKEN), **SMALL | values)


class TestJEPA(TaskTests):
    overfit_lr = 3e-3

    def make_task(self) -> JEPA:
        augment = Compose([SpatialTransform(p_rotation=1, rotation=20), Brightness(p=1)])
        return JEPA(ViT("tiny", in_channels=2, patch_size=TOKEN), augment=augment, **SMALL, **WIDE)


def voxels_of(places: torch.Tensor, grid=GRID, token=TOKEN) -> torch.Tensor:
    """(D,H,W) bool: the voxels of some tokens, token by token."""
    found = torch.zeros([g * t for g, t in zip(grid, token)], dtype=torch.bool)
    for place in places.tolist():
        corner = [int(n) * t for n, t in zip(np.unravel_index(place, grid), token)]
        found[tuple(slice(c, c + t) for c, t in zip(corner, token))] = True
    return found


@pytest.mark.parametrize("grid", [(3, 4, 5), (10, 6, 8), (1, 1, 2)], ids=str)
def test_blocks_are_boxes_of_the_asked_share_and_the_context_is_exact(grid):
    scale = (0.1, 0.25) if math.prod(grid) > 2 else (0.5, 0.5)
    blocks = TokenBlocks(grid, 4, scale, (0.85, 1.0), 1.5, 0.4)
    split = blocks.draw(torch.arange(20))
    count = math.prod(grid)
    assert split.context.shape == (20, max(1, round(0.4 * count))) and split.targets.shape[:2] == (20, 4)
    assert (split.context.diff(dim=1) > 0).all() if split.context.shape[1] > 1 else True
    for context, targets, present in zip(split.context, split.targets, split.present):
        for places, inside in zip(targets, present):
            chosen = places[inside]
            assert not set(chosen.tolist()) & set(context.tolist()), "what is asked for is not seen"
            assert scale[0] * count - 1e-6 <= len(chosen) <= scale[1] * count + 1e-6
            where = np.array(np.unravel_index(chosen.numpy(), grid))
            edges = where.max(1) - where.min(1) + 1
            assert edges.prod() == len(chosen) == len(set(chosen.tolist())), "a full box"
    if count > 2:
        assert len({tuple(c.tolist()) for c in split.context}) == 20, "each seed has its own"


def test_every_place_is_seen_and_the_published_share_would_hide_the_centre():
    """A box of 0.175 of a volume has edges above one half."""
    seen = {}
    for scale in ((0.06, 0.09), (0.15, 0.2)):
        blocks = TokenBlocks((10, 10, 10), 4, scale, (0.85, 1.0), 1.5, 0.4)
        seen[scale] = set(blocks.draw(torch.arange(200)).context.flatten().tolist())
    assert len(seen[(0.06, 0.09)]) == 1000 and 555 not in seen[(0.15, 0.2)]


def test_shapes_keep_to_the_aspect_in_shares_of_the_grid():
    for grid in ((10, 10, 10), (5, 10, 20)):
        for shape in box_shapes("target_scale", grid, (0.15, 0.2), 1.5):
            shares = [n / g for n, g in zip(shape, grid)]
            assert max(shares) / min(shares) <= 1.5 + 1e-6
    assert box_shapes("target_scale", (1, 1, 2), (0.5, 0.5), 1.5) == [(1, 1, 1)], "no box is within: the nearest"


def test_targets_that_leave_too_little_lie_on_each_other():
    blocks = TokenBlocks((2, 2, 2), 4, (0.5, 0.5), (1.0, 1.0), 2.0, 0.5)
    split = blocks.draw(torch.arange(10))
    assert (split.targets == split.targets[:, :1]).all(), "half is seen, so all targets are the other half"


@pytest.mark.parametrize(
    "backbone",
    [
        lambda: ViT("tiny", patch_size=TOKEN),
        lambda: Primus("tiny", patch_size=(8, 8, 8), input_size=(24, 32, 40)),
        lambda: PrimusV2("tiny", input_size=(24, 32, 40)),  # its stem looks beyond its token
    ],
    ids=["ViT", "Primus", "PrimusV2"],
)
def test_the_context_never_sees_a_target(backbone):
    """Bit for bit, in every module of the encoder; and it uses all of what it may see."""
    torch.manual_seed(0)
    network = backbone()
    size = tuple(g * p for g, p in zip(GRID, network.patch_size))
    task = JEPA(network, **SMALL | {"patch_size": size}).train()
    batch = make_batch(size, padded=3)
    split = task.blocks.draw(batch.seed)
    seen = torch.stack([voxels_of(c, GRID, network.patch_size) for c in split.context])[:, None]
    image = batch.image.clone().requires_grad_()
    found = []
    for _, module in network.named_modules():
        module.register_forward_hook(lambda m, i, o: found.append(o.detach().clone()))
    predicted = task.predict(image, split)
    (used,) = torch.autograd.grad(predicted.square().sum(), image)
    assert torch.equal(used != 0, seen)
    first = list(found)
    found.clear()
    task.predict(torch.where(seen, batch.image, 1e3 * torch.randn(batch.image.shape)), split)
    assert len(first) == len(found) > 4 and all(torch.equal(a, b) for a, b in zip(first, found))


def test_targets_get_no_gradient():
    """What of the loss reaches the image comes through the context, and nothing reaches the teacher."""
    task, batch = make(**WIDE), make_batch(SIZE)
    image = batch.image.clone().requires_grad_()
    task(batch.replace(image=image))["loss"].backward()
    seen = torch.stack([voxels_of(c) for c in task.blocks.draw(batch.seed).context])[:, None]
    assert image.grad is not None and torch.equal(image.grad != 0, seen)
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    assert not task.describe(batch.image).requires_grad


def test_loss_equals_its_numpy_twin():
    task, batch = make(2, **WIDE).double(), make_batch(SIZE, channels=2, padded=5)
    batch = batch.replace(image=batch.image.double())
    split = task.blocks.draw(batch.seed)
    predicted = 2 * torch.randn((*split.targets.shape, task.backbone.embed_dim), dtype=torch.float64)
    task.predict = lambda image, split: predicted  # type: ignore[method-assign]
    result = task(batch)
    with torch.no_grad():
        said = task.teacher.encode(batch.image)[0].numpy()  # (B,F,3,4,5)
    terms, everything = [], []
    for b in range(2):
        errors = []
        for m in range(4):
            for p in range(split.targets.shape[2]):
                d, h, w = np.unravel_index(split.targets[b, m, p].item(), GRID)
                # five padded voxels: the last token of the axis is padding, the one before it has three valid ones
                if split.present[b, m, p] and w < 4:
                    feature = said[b, :, d, h, w]
                    target = (feature - feature.mean()) / np.sqrt(feature.var() + 1e-5)
                    apart = np.abs(predicted[b, m, p].numpy() - target)
                    errors.append(np.where(apart < 1, 0.5 * apart**2, apart - 0.5))
        terms.append(np.mean(errors))
        for d, h, w in np.ndindex(*GRID):
            feature = said[b, :, d, h, w]
            everything.append((feature - feature.mean()) / np.sqrt(feature.var() + 1e-5))
    np.testing.assert_allclose(result["loss"].item(), np.mean(terms), rtol=1e-9)
    np.testing.assert_allclose(result["feature_std"].item(), np.std(everything, axis=0).mean(), rtol=1e-9)


def test_collapse_is_noticed():
    """A teacher that says the same of everything: `feature_std` falls from near 1 to 0, whatever the loss does."""
    task, batch = make(), make_batch(SIZE, batch=3)
    before = task(batch)["feature_std"]
    assert 0.1 < before < 1.5
    with torch.no_grad():
        task.teacher.norm.weight.zero_()
        task.teacher.norm.bias.normal_()
    assert task(batch)["feature_std"] < 1e-6


def test_the_teacher_follows_ever_more_slowly():
    task = make(momentum=0.5)
    before = task.teacher.norm.weight.clone()
    with torch.no_grad():
        task.backbone.norm.weight += 1
    task.after_step(0, 2)  # 0.5 + 0.5 / 2
    torch.testing.assert_close(task.teacher.norm.weight, before + 0.25)
    task.after_step(1, 2)
    torch.testing.assert_close(task.teacher.norm.weight, before + 0.25)
    assert task.train().training and not task.teacher.training


def test_blocks_are_predicted_apart_and_by_place():
    """A block's prediction depends on its own places, not on those of the other blocks nor on what fills it up."""
    task = make(**WIDE).train()
    split = task.blocks.draw(torch.arange(2))
    assert not split.present.all()
    seen = torch.randn(2, task.blocks.visible, task.backbone.embed_dim)
    places = task.backbone.positions(GRID)

    def predict(targets: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return task.predictor(seen, places, TokenSplit(split.context, targets, split.present))

    moved = split.targets.clone()
    moved[:, 1] = (moved[:, 1] + 1) % math.prod(GRID)
    first, second = predict(split.targets), predict(moved)
    torch.testing.assert_close(first[:, [0, 2, 3]], second[:, [0, 2, 3]])
    assert not torch.allclose(first[:, 1], second[:, 1], atol=1e-4)
    filled = predict(torch.where(split.present, split.targets, 7))
    torch.testing.assert_close(first[split.present], filled[split.present])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"targets": 0}, "targets=0"), ({"target_scale": (0.001, 0.002)}, r"target_scale=\[0.001, 0.002\]: no box"),
        ({"target_scale": (0.5, 0.2)}, r"target_scale=\[0.5, 0.2\]: write"), ({"aspect": 0.5}, "aspect=0.5"),
        ({"context_share": 0.0}, "context_share=0.0: a share"), ({"context_share": 0.95}, "context_share=0.95: 57 of"),
        ({"momentum": 1.5}, "momentum=1.5"), ({"predictor_dim": 40}, "predictor_dim=40"),
        ({"predictor_depth": 0}, "predictor_depth=0"), ({"patch_size": (6, 16, 18)}, "patch_size: .*axis W is 18"),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(values, key):
    with pytest.raises(ValueError, match=f"^{key}"):
        make(**values)


def test_takes_token_backbones_only():
    with pytest.raises(ValueError, match=r"^task JEPA: TinyUNet has no tokens"):
        JEPA(TinyUNet(), **SMALL)
