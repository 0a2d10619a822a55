"""Combined: the weighted sum of its parts alone, in loss and gradient; balances against numpy; recipes; the suite."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ssl3d import config, schema
from ssl3d.check import check
from ssl3d.checkpoint import exported_prefix
from ssl3d.config import ConfigError
from ssl3d.devices import refuse_combinations
from ssl3d.models.vit import ViT
from ssl3d.tasks.combined import Combined, WeightedTask
from ssl3d.tasks.task import PretextTask
from ssl3d.testing.matrix import task_classes
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = [8, 16, 24]
VIEWS = {
    "_target_": "ssl3d.augment.Compose",
    "transforms": [{"_target_": "ssl3d.augment.SpatialTransform", "p_rotation": 1, "shift": 0.2}],
}
MAE = {"_target_": "ssl3d.tasks.mae.MAE", "patch_size": SIZE, "mask_block": [2, 4, 8], "augment": VIEWS}
CONTRAST = {
    "_target_": "ssl3d.tasks.local_contrast.LocalContrast", "patch_size": [8, 16, 16], "augment": VIEWS, "scale": 0,
    "count": 6, "region": 1, "hidden_dim": 16, "out_dim": 8,
}  # fmt: skip
FUSION = {"_target_": "ssl3d.tasks.volume_fusion.VolumeFusion", "patch_size": SIZE, "smallest": 2, "largest": 6}
PAIR = {"mae": MAE, "fusion": FUSION}
JEPA = {
    "_target_": "ssl3d.tasks.jepa.JEPA", "patch_size": SIZE, "predictor_dim": 32, "predictor_depth": 1,
    "momentum": 0.5,
}  # fmt: skip


def alone(node: dict, backbone) -> PretextTask:
    return schema.build(node, backbone=backbone)


def make(tasks: dict[str, dict], weights: dict[str, float] | None = None, backbone=None, **values) -> Combined:
    given = {name: WeightedTask(node | {"weight": (weights or {}).get(name, 1.0)}) for name, node in tasks.items()}
    torch.manual_seed(0)
    return Combined(backbone or TinyUNet(), given, **values)


def gradients(module: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


class TestCombined(TaskTests):
    def make_task(self) -> Combined:
        return make({"mae": MAE, "contrast": CONTRAST}, {"contrast": 0.1}, TinyUNet(2))

    def make_batch(self, task):
        return make_batch(task.region.size, batch=2, channels=2, padded=2)


class TestCombinedByUncertainty(TestCombined):
    def make_task(self) -> Combined:
        return make(PAIR, None, TinyUNet(2), balance="uncertainty", norms_every=0)

    def make_batch(self, task):
        return make_batch(task.region.size, batch=4, channels=2, padded=2)


class TestCombinedByGradientNorm(TestCombined):
    overfit_lr = 3e-3

    def make_task(self) -> Combined:
        backbone = ViT("tiny", in_channels=2, patch_size=(2, 4, 4))
        return make({"mae": MAE, "jepa": JEPA}, None, backbone, balance="gradient_norm", norms_every=2)


@pytest.mark.parametrize("second", [CONTRAST, FUSION], ids=["MAE and contrast", "MAE and Volume Fusion"])
def test_it_is_the_weighted_sum_of_its_parts_alone(second):
    """Loss, gradient of the backbone, gradients of the heads; each part on the middle of what is read."""
    weights = {"mae": 2.0, "other": 0.25}
    task = make({"mae": MAE, "other": second}, weights).double().train()
    batch = make_batch(task.region.size, batch=4, padded=2)
    batch = batch.replace(image=batch.image.double())
    result = task(batch)
    found = gradients(task, result["loss"])
    total, expected = 0.0, {n: torch.zeros_like(p) for n, p in task.backbone.named_parameters()}
    for name, node in (("mae", MAE), ("other", second)):
        part = alone(node, copy.deepcopy(task.backbone).float()).double().train()
        part.load_state_dict(task.tasks[name].state_dict(), strict=False)
        starts = [(n - m) // 2 for n, m in zip(batch.size, part.region.size)]
        box = (..., *(slice(s, s + n) for s, n in zip(starts, part.region.size)))
        moved = batch.start + torch.tensor(starts)
        loss = part(batch.replace(image=batch.image[box], valid=batch.valid[box], start=moved))["loss"]
        torch.testing.assert_close(result[f"{name}/loss"], loss.detach(), rtol=1e-12, atol=0)
        total += weights[name] * loss.item()
        for key, gradient in gradients(part, loss).items():
            if key.startswith("backbone."):
                expected[key.removeprefix("backbone.")] += weights[name] * gradient
            else:
                torch.testing.assert_close(found[f"tasks.{name}.{key}"], weights[name] * gradient)
    np.testing.assert_allclose(result["loss"].item(), total, rtol=1e-12)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[f"backbone.{key}"], gradient)


def test_gradient_norms_and_their_balance_equal_numpy():
    tasks, weights = {"mae": MAE, "fusion": FUSION}, {"mae": 1.0, "fusion": 3.0}
    task = make(tasks, weights, balance="gradient_norm", norms_every=2).double().train()
    batch = make_batch(task.region.size, batch=2)
    batch = batch.replace(image=batch.image.double())
    result = task(batch)
    norms, losses = [], []
    for name in tasks:
        part = alone(tasks[name], copy.deepcopy(task.backbone).float()).double().train()
        part.load_state_dict(task.tasks[name].state_dict(), strict=False)
        middle = [(n - m) // 2 for n, m in zip(batch.size, part.region.size)]
        box = (..., *(slice(s, s + n) for s, n in zip(middle, part.region.size)))
        loss = part(batch.replace(image=batch.image[box], start=batch.start + torch.tensor(middle)))["loss"]
        own = gradients(part, loss)
        norms.append(np.sqrt(sum((g.numpy() ** 2).sum() for n, g in own.items() if n.startswith("backbone."))))
        losses.append(loss.item())
        np.testing.assert_allclose(result[f"{name}/gradient_norm"].item(), norms[-1], rtol=1e-9)
    given, norms = np.array([1.0, 3.0]), np.array(norms)
    expected = given * (given @ norms / given.sum()) / norms
    np.testing.assert_allclose([result[f"{n}/weight"].item() for n in tasks], expected, rtol=1e-9)
    np.testing.assert_allclose(result["loss"].item(), expected @ losses, rtol=1e-9)
    np.testing.assert_allclose((expected * norms)[1] / (expected * norms)[0], 3.0, err_msg="as their weights say")
    task.after_step(0, 9)
    np.testing.assert_allclose(task.norms.numpy(), norms, rtol=1e-9)
    second = task(batch)
    assert "mae/gradient_norm" not in second, "measured every second step"
    np.testing.assert_allclose(second["loss"].item(), result["loss"].item(), rtol=1e-9)
    task.after_step(1, 9)
    task.norms.mul_(2)
    third = task(batch)
    assert third["mae/gradient_norm"] == result["mae/gradient_norm"]
    task.after_step(2, 9)
    np.testing.assert_allclose(task.norms.numpy(), (0.9 * 2 + 0.1) * norms, rtol=1e-6)


def test_uncertainty_starts_as_the_weighted_sum_and_tends_to_weight_over_loss():
    task = make(PAIR, {"mae": 2.0}, balance="uncertainty", norms_every=0)
    batch = make_batch(task.region.size)
    result = task(batch)
    losses = [result[f"{name}/loss"].item() for name in ("mae", "fusion")]
    np.testing.assert_allclose(result["loss"].item(), 2 * losses[0] + losses[1], rtol=1e-6)
    with torch.no_grad():
        task.log_variance.copy_(torch.tensor(losses).log())
    result = task(batch)
    np.testing.assert_allclose(
        [result["mae/weight"].item(), result["fusion/weight"].item()], [2 / losses[0], 1 / losses[1]], rtol=1e-5
    )
    found = gradients(task, result["loss"])["log_variance"]
    assert found.abs().max() < 1e-5, "there the gradient of s is zero"


def test_what_is_measured_changes_nothing_else():
    """A step with norms equals one without, bit for bit, and no norm is measured where nothing is trained."""
    batch = make_batch(make(PAIR).region.size)
    results = []
    for norms_every in (0, 1):
        task = make(PAIR, norms_every=norms_every).train()
        torch.manual_seed(3)
        loss = task(batch)["loss"]
        results.append((loss, torch.rand(1), gradients(task, loss)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert all(torch.equal(g, results[1][2][n]) for n, g in results[0][2].items())
    with torch.no_grad():
        assert "mae/gradient_norm" not in task(batch)
    assert "mae/gradient_norm" not in task.eval()(batch)


def test_resumed_it_measures_when_it_would_have():
    task = make(PAIR, balance="gradient_norm", norms_every=2).train()
    batch = make_batch(task.region.size)
    task(batch)
    task.after_step(0, 9)
    again = make(PAIR, balance="gradient_norm", norms_every=2).train()
    again(batch)  # a number of steps is known already when the state is loaded
    again.load_state_dict(task.state_dict())
    first, second = task(batch), again(batch)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_the_backbone_is_saved_once_and_trained_where_any_task_trains_it():
    task = make({"jepa": JEPA, "mae": MAE}, backbone=ViT("tiny", patch_size=(2, 4, 4)))
    assert exported_prefix(task) == "backbone."
    backbones = [n for n in task.state_dict() if n.endswith("backbone.norm.weight")]
    assert backbones == ["backbone.norm.weight"], "a teacher is another"
    assert task.tasks["mae"].backbone is task.backbone is task.tasks["jepa"].backbone
    twin = copy.deepcopy(task)
    assert twin.tasks["mae"].backbone is twin.backbone is not task.backbone
    both = make({"contrast": CONTRAST | {"stage": "global"}, "fusion": FUSION})
    assert both.needs_decoder and all(p.requires_grad for p in both.backbone.parameters())
    encoder = make({"contrast": CONTRAST | {"stage": "global"}, "other": CONTRAST | {"stage": "global"}})
    names = encoder.backbone.encoder_parameter_names()
    assert {n for n, p in encoder.backbone.named_parameters() if p.requires_grad} == names


def test_regions_hold_what_every_task_reads():
    task = make({"mae": MAE, "fusion": FUSION | {"source": "different"}})
    parts = task.parts()
    assert task.region.size == parts["mae"].region.size and task.input_size == tuple(SIZE)
    assert task.region.group == 2 and task.region.same_modality and not task.region.same_volume
    assert make(PAIR).region.same_volume
    assert task.passes == 2 and make({"mae": MAE, "contrast": CONTRAST}).passes == 1 + 2 * 16 / 24
    with pytest.raises(ValueError, match=r"^tasks.other: its groups are of different volumes, those of tasks.fusion"):
        make({"fusion": FUSION, "other": FUSION | {"source": "different"}})


@pytest.mark.parametrize(
    ("tasks", "values", "words"),
    [
        ({"mae": MAE}, {}, r"^tasks: 1 given"),
        ({"mae": MAE, "time": FUSION}, {}, r"^tasks\.time: this name is taken"),
        ({"mae": MAE, "keys": FUSION}, {}, r"^tasks\.keys: this name is taken"),
        ({"mae": MAE, "a.b": FUSION}, {}, r"^tasks\.a\.b: this name is taken or is no word"),
        ({"mae": MAE | {"mask_ratio": 2.0}, "fusion": FUSION}, {}, r"^tasks\.mae: mask_ratio=2\.0"),
        ({"mae": MAE, "jepa": JEPA}, {}, r"^tasks\.jepa: task JEPA: TinyUNet"),
        (PAIR, {"norms_every": -1}, r"^norms_every=-1.*at least 0"),
        (PAIR, {"norms_every": 0, "balance": "gradient_norm"}, r"^norms_every=0.*at least 1"),
    ],
)
def test_what_cannot_work_is_refused(tasks, values, words):
    with pytest.raises(ValueError, match=words):
        make(tasks, **values)
    with pytest.raises(ValueError, match=r"^tasks\.mae: weight=0"):
        make(PAIR, {"mae": 0.0})


RECIPE = {
    "run": {"dir": "runs/x", "steps": 10},
    "data": {"store": "my.zarr", "batch_size": 2},
    "model": {"_target_": "ssl3d.models.vit.ViT", "size": "tiny", "patch_size": [8, 8, 8]},
    "task": {
        "_target_": "ssl3d.tasks.combined.Combined",
        "tasks": {
            "mae": {"_target_": "ssl3d.tasks.mae.MAE", "patch_size": [16, 32, 24], "mask_block": 8, "weight": 2},
            "fusion": {"_target_": "ssl3d.tasks.volume_fusion.VolumeFusion", "patch_size": [32, 32, 32]},
        },
    },
    "optim": {"lr": 1e-3},
}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.tasks.mae.mask_ration=0.5", ["task.tasks.mae.mask_ration", "mask_ratio"]),
        ("task.tasks.mae.wait=2", ["task.tasks.mae.wait", "did you mean 'weight'"]),
        ("task.tasks.mae.weight=much", ["task.tasks.mae.weight", "a number"]),
        ("task.tasks.mae.backbone=1", ["unknown key 'task.tasks.mae.backbone'"]),
        ("task.tasks.fusion.levels=x", ["task.tasks.fusion.levels", "a whole number"]),
        ("task.tasks.fusion._target_=ssl3d.models.vit.ViT", ["task.tasks.fusion._target_", "is no PretextTask"]),
        ("task.tasks.fusion=3", ["task.tasks.fusion", "must be a mapping with _target_"]),
        ("task.tasks=3", ["task.tasks", "must be a mapping"]),
        ("task.balance=equal", ["task.balance", "uncertainty"]),
    ],
)
def test_a_fault_in_a_recipe_is_one_sentence_naming_the_key(override, words):
    with pytest.raises(ConfigError) as error:
        config.load(RECIPE, [override])
    assert len(error.value.faults) == 1, error.value.faults
    assert all(word in error.value.faults[0] for word in words), error.value.faults


def test_a_recipe_is_completed_read_back_and_built():
    recipe = config.load(copy.deepcopy(RECIPE), ["task.tasks.fusion.weight=0.5"])
    assert config.load(recipe.to_dict()) == recipe
    assert recipe.task["tasks"]["mae"]["mask_ratio"] == 0.75 and recipe.task["tasks"]["fusion"]["weight"] == 0.5
    task = config.build_task(recipe, config.build_model(recipe))
    assert task.given == {"mae": 2.0, "fusion": 0.5} and list(task.parts()) == ["mae", "fusion"]
    refuse_combinations(config.load(recipe.to_dict(), ["run.strategy=fsdp"]), make(PAIR, norms_every=0))
    with pytest.raises(ConfigError, match=r"^run\.strategy is fsdp, but Combined reads single weights"):
        refuse_combinations(config.load(recipe.to_dict(), ["run.strategy=fsdp"]), task)
    with pytest.raises(ConfigError, match=r"^task: tasks\.mae: mask_ratio=1\.5"):
        check(RECIPE, ["task.tasks.mae.mask_ratio=1.5"])


def test_no_task_has_a_key_of_the_slot():
    for task in task_classes():
        assert not set(WeightedTask.extra) & set(schema.parameters(task)), task
