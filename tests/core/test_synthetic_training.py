"""Training without any data: every task from `data.store=synthetic`, and the task that makes its own."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from ssl3d import checkpoint
from ssl3d.check import check
from ssl3d.config import ConfigError, load
from ssl3d.log import read_metrics
from ssl3d.train import train

STORE = "synthetic:volumes=6,size=32"
SYNTHESIS = {
    "_target_": "ssl3d.tasks.synthesis.Synthesis", "patch_size": [8, 16, 12], "voxels": 32, "hidden_dim": 8,
    "out_dim": 8,
}  # fmt: skip


def lose_the_last_checkpoint(run) -> None:
    (run / checkpoint.FOLDER / checkpoint.LAST).unlink()


@pytest.mark.parametrize("task", ["MAE", "Synthesis"])
def test_a_run_without_data_resumes_exactly_and_says_what_it_saw(tiny, tmp_path, task):
    recipe = tiny(f"data.store={STORE}", "data.holdout=0.2", "run.steps=4", "run.holdout_every=4")
    if task == "Synthesis":
        recipe = load(recipe.to_dict() | {"task": SYNTHESIS})
    run = train(recipe)
    whole = checkpoint.open_run(run)
    assert all(line["loss"] > 0 for line in read_metrics(run / "metrics.jsonl") if "loss" in line)
    lose_the_last_checkpoint(run)
    assert checkpoint.open_run(run)["step"] == 2
    again = checkpoint.open_run(train(recipe))
    assert again["step"] == 4 and all(torch.equal(v, again["model"][k]) for k, v in whole["model"].items())
    seen = pd.read_parquet(run / "seen.parquet")
    assert len(seen) == 5 and set(seen["store"]) == {STORE} and seen["subject"].str.startswith("synthetic-").all()


def test_other_synthetic_volumes_do_not_continue_a_run(tiny):
    lose_the_last_checkpoint(train(tiny(f"data.store={STORE}", "run.steps=4")))
    with pytest.raises(ConfigError, match="the volumes are not those"):
        train(tiny(f"data.store={STORE},seed=1", "run.steps=4"))


@pytest.mark.slow
def test_embeddings_are_watched_on_images_though_the_task_reads_none(tiny):
    recipe = tiny(f"data.store={STORE}", "run.steps=2", "run.collapse_every=2", "run.preview_every=2")
    run = train(load(recipe.to_dict() | {"task": SYNTHESIS}))
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["collapse/effective_rank"] > 2 for line in lines if "collapse/effective_rank" in line] == [True]
    assert list((run / "previews").glob("*.png"))


def test_labels_of_a_store_are_painted(tiny):
    recipe = tiny(f"data.store={STORE}", "run.steps=2")
    run = train(load(recipe.to_dict() | {"task": SYNTHESIS | {"labels": "store"}}))
    assert checkpoint.open_run(run)["step"] == 2


def test_a_store_without_labels_has_none_to_paint(tiny):
    recipe = tiny("run.steps=2")
    with pytest.raises(ValueError, match="no labelled volume"):
        train(load(recipe.to_dict() | {"task": SYNTHESIS | {"labels": "store"}}))


@pytest.mark.slow
def test_recipes_are_checked_without_data():
    assert "ssl3d.tasks.synthesis.Synthesis" in check("synthesis_resenc_s")
    assert "store: synthetic" in check("mae_resenc_s", ["data.store=synthetic"])


@pytest.mark.parametrize("task", ["MAE", "Synthesis"])
def test_two_channels_are_asked_of_the_data(tiny, task):
    def two_channels(*overrides):
        recipe = tiny(f"data.store={STORE}", "run.steps=2", "model.in_channels=2", *overrides)
        return load(recipe.to_dict() | {"task": SYNTHESIS}) if task == "Synthesis" else recipe

    with pytest.raises(ConfigError, match=r"model\.in_channels is 2, but .* data\.channels=2"):
        train(two_channels())
    assert checkpoint.open_run(train(two_channels("data.channels=2")))["step"] == 2
