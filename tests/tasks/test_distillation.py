"""Distillation: its loss against a numpy twin, scales that meet, a teacher that stays as it is, and the suite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl3d import schema
from ssl3d.models.backbone import Backbone
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.resnet import ResNet
from ssl3d.models.vit import ViT
from ssl3d.tasks.distillation import Distillation, nearest_pairs
from ssl3d.tasks.trained_network import TrainedNetwork
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = (8, 16, 24)
UNET = {"_target_": "ssl3d.testing.toys.TinyUNet", "width": 12}
RESNET = {"_target_": "ssl3d.models.resnet.ResNet", "depth": 10, "width": 0.125}
TOKENS = {"_target_": "ssl3d.models.vit.ViT", "size": "tiny", "patch_size": [2, 4, 4]}


def make(backbone: Backbone | None = None, teacher: dict | None = None, **values) -> Distillation:
    torch.manual_seed(0)
    node = {**(teacher or UNET)}
    completed, faults = schema.check_value(
        {**node, "in_channels": node.get("in_channels", 1)}, TrainedNetwork, "teacher"
    )
    assert not faults, faults
    return Distillation(backbone or TinyUNet(), TrainedNetwork(completed), SIZE, **values)


class TestDistillation(TaskTests):
    overfit_steps = 150

    def make_task(self) -> Distillation:
        return make(TinyUNet(2), UNET | {"in_channels": 2})

    def make_batch(self, task):
        return make_batch(task.region.size, batch=2, channels=2, padded=2)


class TestDistillationOfTheDecoder(TestDistillation):
    def make_task(self) -> Distillation:
        return make(TinyUNet(2), UNET | {"in_channels": 2}, decoder=True)


class TestDistillationOfTokens(TestDistillation):
    """From a ViT into a network of convolutions: other scales, another family."""

    def make_task(self) -> Distillation:
        return make(TinyUNet(2), TOKENS | {"in_channels": 2})


class TestDistillationIntoTokens(TestDistillation):
    overfit_lr = 3e-3

    def make_task(self) -> Distillation:
        return make(ViT("tiny", 2, patch_size=(2, 4, 4)), UNET | {"in_channels": 2})


def pooled(x: np.ndarray, factor: int) -> np.ndarray:
    b, c, d, h, w = x.shape
    return x.reshape(b, c, d // factor, factor, h // factor, factor, w // factor, factor).mean((3, 5, 7))


def test_the_loss_equals_its_numpy_twin():
    """A teacher with scales 1, 2, 4 and a student with 1, 2: its coarser scale answers for the teacher's two."""
    deep = {"n_stages": 3, "features_per_stage": [4, 6, 8], "n_blocks_per_stage": [1, 1, 1]}
    task = make(TinyUNet(width=4), {"_target_": "ssl3d.models.resenc.ResEncUNet", "arch_kwargs": deep}, beta=0.5)
    task = task.double().eval()
    batch = make_batch(SIZE, batch=2, padded=4)
    batch = batch._map(lambda t: t.double() if t.is_floating_point() else t)
    assert task.pairs == [(0, 0), (1, 1), (1, 2)]
    result = task(batch)
    mine, theirs = task.backbone.encode(batch.image), task.teacher.encode(batch.image)
    valid, losses, cosines = batch.valid.numpy(), [], []
    for (i, j), linear in zip(task.pairs, task.maps):
        weight, bias = linear.weight.detach().numpy()[:, :, 0, 0, 0], linear.bias.detach().numpy()
        predicted = np.einsum("oc,bcdhw->bodhw", weight, mine[i].detach().numpy()) + bias[None, :, None, None, None]
        target = theirs[j].detach().numpy()
        predicted = pooled(predicted, predicted.shape[2] // target.shape[2])
        target = target - target.mean(1, keepdims=True)
        target = target / np.sqrt(target.var(1, keepdims=True) + 1e-5)
        where = pooled(valid.astype(float), valid.shape[2] // target.shape[2])[:, 0] > 0
        error = np.abs(predicted - target)
        huber = np.where(error < 0.5, error**2, error - 0.25).mean(1)  # 0.5 x^2 / beta below it
        losses.append(np.mean([huber[b][where[b]].mean() for b in range(2)]))
        norms = np.linalg.norm(predicted, axis=1) * np.linalg.norm(target, axis=1)
        cosines.append(((predicted * target).sum(1) / norms)[where].mean())
    np.testing.assert_allclose(result["loss"].item(), np.mean(losses), rtol=1e-9)
    np.testing.assert_allclose(result["cosine"].item(), np.mean(cosines), rtol=1e-6)


@pytest.mark.parametrize(
    ("mine", "theirs", "pairs"),
    [
        ([1, 2, 4, 8], [1, 2, 4, 8, 16, 32], [(0, 0), (1, 1), (2, 2), (3, 3), (3, 4), (3, 5)]),
        ([1, 2, 4, 8, 16, 32], [8], [(i, 0) for i in range(6)]),
        ([8], [1, 4, 16], [(0, 0), (0, 1), (0, 2)]),
    ],
)
def test_every_scale_of_either_network_meets_the_nearest_of_the_other(mine, theirs, pairs):
    assert nearest_pairs([(s,) * 3 for s in mine], [(s,) * 3 for s in theirs]) == pairs


def test_the_teacher_stays_as_it_is():
    task = make(teacher=UNET | {"init": "runs/large"}).train()
    before = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    assert not task.teacher.training and task.backbone.training
    TestDistillation().train_steps(task, make_batch(SIZE), 3)
    assert all(torch.equal(value, before[name]) for name, value in task.teacher.state_dict().items())
    assert all(p.grad is None for p in task.teacher.parameters())
    (named,) = task.trained_networks().items()
    assert named[0] == "teacher" and named[1].network is task.teacher and named[1].init == "runs/large"


def test_what_it_predicts_does_not_follow_what_is_not_valid():
    """Padding beyond the reach of the coarsest scale's kernels: the valid part's loss is as it was."""
    task = make(teacher=UNET).eval()
    batch = make_batch(SIZE, padded=8)
    other = batch._map(torch.clone)
    other.image[..., -3:] += 5.0
    torch.testing.assert_close(task(batch)["loss"], task(other)["loss"])


@pytest.mark.parametrize(
    ("backbone", "teacher", "values", "message"),
    [
        (TinyUNet(), UNET | {"in_channels": 3}, {}, r"^teacher\.in_channels=3: .*model\.in_channels is 1"),
        (ResNet(10, width=0.125), UNET, {"decoder": True}, r"^decoder=true: the model, ResNet, has no decoder"),
        (TinyUNet(), RESNET, {"decoder": True}, r"^decoder=true: the teacher, ResNet, has no decoder"),
        (TinyUNet(), UNET, {"beta": 0.0}, r"^beta=0\.0: must be positive"),
        (
            TinyUNet(),
            {"_target_": "ssl3d.models.resenc.ResEncUNet", "size": "L"},
            {},
            r"^patch_size: teacher: .*axis D",
        ),
        (TinyUNet(), TOKENS | {"patch_size": [0, 4, 4]}, {}, r"^teacher: "),
    ],
)
def test_mistakes_name_the_key(backbone, teacher, values, message):
    with pytest.raises(ValueError, match=message):
        make(backbone, teacher, **values)


def test_an_exported_student_is_the_small_network():
    small = {"n_stages": 3, "features_per_stage": [4, 6, 8], "n_blocks_per_stage": [1, 1, 1]}
    task = make(ResEncUNet("S", arch_kwargs=small), decoder=True)
    assert task.exported is task.backbone and task.exported.spec().kwargs["arch_kwargs"]["features_per_stage"] == [
        4,
        6,
        8,
    ]
