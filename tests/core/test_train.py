"""The loop: exact resume, what a run directory holds, what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from ssl3d import checkpoint
from ssl3d.config import ConfigError, load
from ssl3d.log import read_metrics
from ssl3d.loop import TrainingStopped
from ssl3d.losses import gather
from ssl3d.setup_run import refuse_other_recipe
from ssl3d.tasks.mae import MAE
from ssl3d.train import train


def without_time(run):
    lines = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def assert_same_run(a, b):
    one, two = checkpoint.open_run(a), checkpoint.open_run(b)
    assert one["step"] == two["step"]
    for part in ("model", "average"):
        if one[part] is not None:
            assert one[part].keys() == two[part].keys()
            assert all(torch.equal(one[part][k], two[part][k]) for k in one[part])
    assert without_time(a) == without_time(b)


class Stop(Exception):
    """Raised by a test in mid-run."""


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(n): the objective raises Stop in its n-th forward pass."""

    def arm(n: int) -> None:
        calls = []
        original = MAE.forward

        def forward(self, batch, preview=False):
            calls.append(1)
            if len(calls) == n:
                monkeypatch.setattr(MAE, "forward", original)
                raise Stop
            return original(self, batch, preview)

        monkeypatch.setattr(MAE, "forward", forward)

    return arm


SGD = ["optim.name=sgd", "optim.ema=0.9", "optim.clip_norm=1.0", "run.accumulate=2"]


@pytest.mark.parametrize("overrides", [[], SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("at", [1, 4, 6])
def test_resume_is_exact(tiny, tmp_path, stop_after, overrides, at):
    whole = train(tiny(*overrides, f"run.dir={tmp_path / 'whole'}"))
    broken = tiny(*overrides, f"run.dir={tmp_path / 'broken'}")
    stop_after(at * broken.run.accumulate)
    with pytest.raises(Stop):
        train(broken)
    train(broken)
    assert_same_run(whole, tmp_path / "broken")


def test_another_number_of_workers_or_micro_batches_sees_the_same_samples(tiny, tmp_path):
    one = train(tiny(f"run.dir={tmp_path / 'one'}"))
    two = train(tiny(f"run.dir={tmp_path / 'two'}", "data.workers=2"))
    assert_same_run(one, two)
    # SGD: Adam would blow the rounding of gradients that are zero (biases before a norm) up to whole steps
    exact = ["run.precision=64-true", "optim.name=sgd"]
    three = train(tiny(f"run.dir={tmp_path / 'three'}", "run.accumulate=2", *exact))
    four = train(tiny(f"run.dir={tmp_path / 'four'}", *exact))
    a, b = (checkpoint.open_run(r)["model"] for r in (three, four))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-9


def test_layouts_change_no_bits_or_only_rounding(tiny, tmp_path):
    exact = ["run.precision=64-true", "optim.name=sgd", "optim.ema=0.9"]
    plain = train(tiny(*exact, f"run.dir={tmp_path / 'plain'}"))
    recomputed = train(tiny(*exact, "run.recompute=true", f"run.dir={tmp_path / 'recomputed'}"))
    assert_same_run(plain, recomputed)
    last = train(tiny(*exact, "run.channels_last=true", f"run.dir={tmp_path / 'last'}"))
    a, b = (checkpoint.open_run(run)["model"] for run in (plain, last))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-9
    assert all(value.is_contiguous() for value in b.values()), "checkpoints know no layout"


def test_a_run_directory_holds_what_it_promises(tiny, tmp_path):
    run = train(tiny("run.preview_every=4", "run.holdout_every=4", "data.holdout=0.2"))
    saved = load(OmegaConf.to_container(OmegaConf.load(run / "recipe.yaml")))
    assert saved == tiny("run.preview_every=4", "run.holdout_every=4", "data.holdout=0.2")
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"]
    seen = pd.read_parquet(run / "seen.parquet")
    assert list(seen.columns) == ["fingerprint", "perceptual_hash", "subject", "volume", "store"]
    assert len(seen) == 5, "the held-out subject is not among those trained on"
    assert sorted(p.name for p in (run / "previews").iterdir()) == ["step_00000004.png", "step_00000008.png"]
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [3, 6, 8]
    assert [line["step"] for line in lines if "holdout/loss" in line] == [4, 8]


def test_previews_and_holdout_change_nothing(tiny, tmp_path):
    plain = train(tiny(f"run.dir={tmp_path / 'plain'}", "data.holdout=0.2"))
    watched = train(
        tiny(f"run.dir={tmp_path / 'watched'}", "data.holdout=0.2", "run.preview_every=1", "run.holdout_every=1")
    )
    a, b = (checkpoint.open_run(r)["model"] for r in (plain, watched))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_what_one_rank_observes_waits_for_no_other(tiny, monkeypatch):
    """Only one rank draws pictures and holds out: a loss that gathers would wait for the others for ever."""
    monkeypatch.setattr(gather.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(gather.distributed, "get_world_size", lambda *_: 2)
    seen = []
    original = MAE.forward

    def forward(self, batch, preview=False):
        seen.append((self.training, gather.world_size()))
        return original(self, batch, preview)

    monkeypatch.setattr(MAE, "forward", forward)
    train(tiny("run.steps=2", "data.holdout=0.2", "run.preview_every=1", "run.holdout_every=1"))
    assert set(seen) == {(True, 2), (False, 1)}


def test_excluded_subjects_are_never_seen(tiny, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"pool": ["patient0"], "validation": ["patient1"], "test": ["patient2", "patient3"]}))
    run = train(tiny(f"data.exclude={split}", "run.steps=1"))
    assert set(pd.read_parquet(run / "seen.parquet")["subject"]) == {"patient0", "patient4", "patient5"}


def test_backbone_and_objective_come_back(tiny):
    run = train(tiny())
    backbone, objective = checkpoint.load_backbone(run), checkpoint.load_objective(run)
    x = torch.randn(1, 1, 8, 16, 12)
    for a, b in zip(backbone.encode(x), objective.backbone.encode(x)):
        assert torch.equal(a, b)


def test_init_from_a_run(tiny, tmp_path):
    run = train(tiny())
    again = tiny(f"run.dir={tmp_path / 'again'}", f"model.init={run}", "model.init_part=encoder", "optim.lr=1e-12",
                 "run.steps=1", "optim.weight_decay=0")  # fmt: skip
    before, after = checkpoint.load_backbone(run), checkpoint.load_backbone(train(again))
    encoder = before.encoder_parameter_names()
    for name, value in before.state_dict().items():
        same = torch.allclose(value, after.state_dict()[name], atol=1e-6)
        assert same or name not in encoder, name
    wrong = [f"run.dir={tmp_path / 'wrong'}", f"model.init={run}", "model.arch_kwargs.features_per_stage=[4,6]"]
    with pytest.raises(ValueError, match=r"model\.init: .* is \(.*this model needs"):
        train(tiny(*wrong))


def test_finished_run_is_left_alone(tiny, capsys):
    run = train(tiny())
    stamp = (run / "checkpoints" / "last.pt").stat().st_mtime_ns
    capsys.readouterr()
    assert train(tiny()) == run
    assert capsys.readouterr().out == f"{run}: all {tiny().run.steps} steps were done before\n"
    assert (run / "checkpoints" / "last.pt").stat().st_mtime_ns == stamp


def test_a_run_says_what_it_leaves_out_and_that_it_ends_too_soon(tiny, capsys):
    train(tiny("data.holdout=0.4", "optim.warmup_steps=50"))
    said = capsys.readouterr().out
    words = r"^\d+ of \d+ volumes to train on, \d+ held out \(\d of \d+ subjects, data\.holdout=0\.4\)$"
    assert re.search(words, said, re.MULTILINE)
    assert re.search(r"^optim\.warmup_steps is 50, run\.steps \d+: the rate still rises when", said, re.MULTILINE)


def test_an_exclusion_that_finds_nobody_says_so(tiny, tmp_path, capsys):
    names = json.dumps({"validation": ["MRN 1"], "test": ["MRN 2"]})
    (tmp_path / "split.json").write_text(names)
    train(tiny(f"data.exclude={tmp_path / 'split.json'}", "run.steps=1"))
    assert "data.exclude leaves nobody out: none of its 2 subjects goes by that name in" in capsys.readouterr().out


def test_a_run_that_is_refused_leaves_no_directory_and_takes_nothing_from_one(tiny, tmp_path):
    for mine in (False, True):
        folder = tmp_path / f"refused{mine}"
        if mine:
            folder.mkdir()
        with pytest.raises(ValueError, match=r"data\.include"):
            train(tiny("data.include=[nobody]", f"run.dir={folder}"))
        assert folder.exists() == mine


def test_another_recipe_is_refused_in_the_same_directory(tiny):
    train(tiny())
    with pytest.raises(ConfigError, match=r"task\.mask_ratio is 0\.6, but the run .* was started with 0\.75"):
        train(tiny("task.mask_ratio=0.6"))


def test_a_key_younger_than_the_run_had_its_default(tiny, tmp_path):
    before = tiny().to_dict()
    del before["run"]["channels_last"]
    refuse_other_recipe(tmp_path, before, tiny())
    with pytest.raises(ConfigError, match=r"run\.steps is 99, .*; model\.init=.* starts another run from its weights"):
        refuse_other_recipe(tmp_path, before, tiny("run.steps=99"))
    with pytest.raises(ConfigError, match=r"run\.channels_last is True, but the run .* was started with False"):
        refuse_other_recipe(tmp_path, before, tiny("run.channels_last=true"))


def test_other_volumes_are_refused_in_the_same_directory(tiny, stop_after):
    stop_after(6)
    with pytest.raises(Stop):
        train(tiny())
    with pytest.raises(ConfigError, match="volumes are not those"):
        train(tiny('data.exclude=["patient0"]'))


def test_what_the_initial_weights_saw_is_seen_too(tiny, tmp_path):
    first = train(tiny('data.include=["patient0"]', "run.steps=1"))
    second = train(
        tiny(f"run.dir={tmp_path / 'second'}", f"model.init={first}", 'data.include=["patient1"]', "run.steps=1")
    )
    assert set(pd.read_parquet(second / "seen.parquet")["subject"]) == {"patient0", "patient1"}


def test_damaged_last_checkpoint_falls_back(tiny, tmp_path, capsys):
    whole = train(tiny(f"run.dir={tmp_path / 'whole'}"))
    run = train(tiny())
    path = run / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    train(tiny())
    assert "damaged" in capsys.readouterr().out
    assert_same_run(whole, run)


def test_a_damaged_volume_stops_a_run_unless_it_is_to_be_skipped(tiny, tiny_store, tmp_path):
    store = shutil.copytree(tiny_store, tmp_path / "damaged.zarr")
    shard = store / "volumes" / "v3" / "c" / "0" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-50] + bytes(50))
    options = [f"data.store={store}", "data.batch_size=6", "run.log_every=1"]
    with pytest.raises(ValueError, match=r"damaged.*convert"):
        train(tiny(*options))
    run = train(tiny(*options, "data.on_error=skip"))  # the same directory: the choice may change
    replaced = [line["data/replaced"] for line in read_metrics(run / "metrics.jsonl")]
    assert len(replaced) == 8 and sum(replaced) > 0
    assert "data/replaced" not in read_metrics(train(tiny(f"run.dir={tmp_path / 'whole'}")) / "metrics.jsonl")[0]


def test_nan_stops_with_step_and_samples_and_keeps_the_last_good(tiny, monkeypatch):
    original = MAE.forward

    def forward(self, batch, preview=False):
        out = original(self, batch, preview)
        if self.steps_seen == 5:
            out["loss"] = out["loss"] * float("nan")
        self.steps_seen += 1
        return out

    monkeypatch.setattr(MAE, "steps_seen", 0, raising=False)
    monkeypatch.setattr(MAE, "forward", forward)
    recipe = tiny()
    with pytest.raises(TrainingStopped, match=r"loss became NaN or Inf at step 5, with samples v\d@.*, v\d@"):
        train(recipe)
    content = checkpoint.open_run(recipe.run.dir)
    assert content["step"] == 4
    assert all(torch.isfinite(v).all() for v in content["model"].values())


def test_checkpoint_is_plain(tiny):
    run = train(tiny("run.steps=1"))
    content = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert "patient" not in str({k: v for k, v in content.items() if k not in ("model", "optimizer")})


@pytest.mark.slow
def test_two_ranks_are_one_rank(tiny, tmp_path):
    exact = ["run.precision=64-true", "optim.name=sgd", "run.steps=4", "data.batch_size=4"]
    recipe = tiny(*exact)
    file = tmp_path / "recipe.yaml"
    OmegaConf.save(OmegaConf.create(recipe.to_dict()), file)
    one = train(tiny(*exact, f"run.dir={tmp_path / 'one'}"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517",
               "-m", "ssl3d", "train", str(file)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=110)
    a, b = (checkpoint.open_run(r)["model"] for r in (one, recipe.run.dir))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-9
    for x, y in zip(without_time(one), without_time(tmp_path / "run")):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-9)


@pytest.mark.slow
def test_wandb_offline_is_written_and_continued(tiny, tmp_path, monkeypatch, stop_after):
    monkeypatch.setenv("WANDB_SILENT", "true")
    watched = ["run.collapse_every=2", "run.holdout_every=4", "run.preview_every=4", "data.holdout=0.2"]
    recipe = tiny("wandb.mode=offline", *watched)
    stop_after(3)
    with pytest.raises(Stop):
        train(recipe)
    run = train(recipe)
    name = (run / "wandb_id.txt").read_text().strip()
    assert len(list((run / "wandb").glob(f"offline-run-*-{name}"))) == 2, "the second start goes on under the same id"


def test_under_a_sweep_agent_each_run_has_its_own_directory(tiny, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    monkeypatch.setenv("WANDB_RUN_ID", "run3")
    recipe = tiny("wandb.mode=disabled", "run.steps=1")
    assert train(recipe).parts[-3:] == ("run", "sweep7", "run3")
