"""Which arms are runs of one method."""

import copy

import pytest

from downstream.methods import method_of

RECIPE = {
    "run": {"dir": "runs/a", "steps": 100, "seed": 0, "trackers": [], "precision": "auto"},
    "data": {"store": "a.zarr", "batch_size": 2, "workers": 4},
    "optim": {"lr": 0.01},
    "task": {"_target_": "ssl3d.tasks.mae.MAE", "mask_ratio": 0.6},
    "wandb": {"mode": "auto"},
}


def _provenance(changes=(), steps=100):
    recipe = copy.deepcopy(RECIPE)
    for section, key, value in changes:
        recipe.setdefault(section, {})[key] = value
    return {"recipe": recipe, "seed": recipe["run"]["seed"], "steps": steps}


def test_the_name_is_the_task_and_a_digest():
    name = method_of(_provenance())
    assert name.startswith("MAE-") and len(name) == len("MAE-") + 6


@pytest.mark.parametrize(
    "change",
    [
        ("run", "seed", 1),
        ("run", "dir", "runs/b"),
        ("run", "trackers", ["mlflow"]),
        ("data", "workers", 0),
        ("data", "store", ["a.zarr"]),
        ("wandb", "mode", "offline"),
        ("probe", "store", "b.zarr"),
    ],
)
def test_what_decides_no_weight_is_free(change):
    assert method_of(_provenance([change])) == method_of(_provenance())


@pytest.mark.parametrize(
    "change",
    [
        ("run", "steps", 200),
        ("run", "precision", "32-true"),
        ("data", "store", "b.zarr"),
        ("data", "store", ["a.zarr", "b.zarr"]),
        ("data", "batch_size", 4),
        ("optim", "lr", 0.02),
        ("task", "mask_ratio", 0.7),
        ("model", "init", "other.ckpt"),
    ],
)
def test_what_decides_weights_is_not(change):
    assert method_of(_provenance([change])) != method_of(_provenance())


def test_a_run_that_stopped_early_is_another_method():
    assert method_of(_provenance(steps=50)) != method_of(_provenance())


def test_weights_without_a_recipe():
    assert method_of({"imported": {}}, "abcdef0123") == "weights-abcdef"
    assert method_of({}) == ""
