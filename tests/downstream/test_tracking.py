"""An evaluation in wandb: a run an arm, in one group, with the scores of the report and no patient."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest
import wandb
from shapes_store import suite_values
from synthetic_evaluation import rows, write_evaluation

from downstream.arms import Arm
from downstream.comparison import compare
from downstream.suite import load_suite
from downstream.tracking import track
from ssl3d.models.backbone import BackboneSpec


@pytest.fixture
def begun(monkeypatch) -> list[SimpleNamespace]:
    """wandb's runs, replaced by what they were told."""
    found: list[SimpleNamespace] = []

    def init(**settings):
        lines: list[dict] = []
        run = SimpleNamespace(settings=settings, lines=lines, log=lines.append, finished=False)
        run.define_metric = lambda *_, **__: None
        run.finish = lambda: setattr(run, "finished", True)
        found.append(run)
        return run

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "Table", lambda columns, data: SimpleNamespace(columns=columns, data=data))
    return found


@pytest.fixture
def finished(tmp_path):
    """finished(*overrides) -> (context, arms) of an evaluation whose results are known."""
    results = rows({"mae": {1: 0.1, 4: 0.02}}, patients=4)
    out = write_evaluation(tmp_path / "out", results, pictures=0)
    run = tmp_path / "runs" / "mae"
    (run / "checkpoints").mkdir(parents=True)
    (run / "wandb_id.txt").write_text("abc123\n")
    arms = [
        Arm("scratch", "", BackboneSpec("x"), "d0", "scratch", 10),
        Arm("mae", str(run / "checkpoints" / "last.pt"), BackboneSpec("x"), "d1", "scratch", 10),
    ]

    def make(*overrides: str):
        suite = load_suite(suite_values(tmp_path / "store.zarr", tmp_path / "split.json"), overrides)
        return SimpleNamespace(suite=suite, out=out), arms, compare(results, {"mae": "scratch"})

    return make


def test_every_arm_is_a_run_of_one_group(finished, begun):
    context, arms, points = finished("wandb.mode=online", "wandb.project=mine")
    track(context, arms)
    track(context, arms)
    assert [run.settings["name"] for run in begun] == ["scratch", "mae"] * 2 and all(run.finished for run in begun)
    assert {(run.settings["group"], run.settings["project"]) for run in begun} == {("tiny-store", "mine")}
    assert [run.settings["id"] for run in begun[:2]] == [run.settings["id"] for run in begun[2:]]
    assert begun[0].settings["id"] != begun[1].settings["id"] and begun[0].settings["resume"] == "allow"
    assert [run.settings["config"]["pretrained"] for run in begun[:2]] == [None, "abc123"]
    *scores, table = begun[1].lines
    assert [line["n_labelled"] for line in scores] == [1, 4]
    (expected,) = [
        p.score.mean for p in points if (p.arm, p.n_labelled, p.metric, p.measure) == ("mae", 4, "dice", "finetune")
    ]
    assert scores[1]["finetune/dice"] == expected
    assert "patient" not in table["results"].columns and len(table["results"].data) > 100


def test_runs_of_one_method_have_their_own_scores(tmp_path, begun):
    """The report pools three or more of a method; here each arm is a run of wandb, and tells its own."""
    names = ["mae_0", "mae_1", "mae_2"]
    out = write_evaluation(tmp_path / "out", rows({name: {4: 0.1} for name in names}, patients=4), pictures=0)
    table = pd.read_csv(out / "results.csv", dtype=str, keep_default_na=False)
    table.loc[table["arm"] != "scratch", "method"] = "MAE-1"
    for number, name in enumerate(names):
        table.loc[table["arm"] == name, ["run", "pretrain_seed"]] = [f"runs/{name}", str(number)]
    table.to_csv(out / "results.csv", index=False)
    suite = load_suite(suite_values(tmp_path / "s.zarr", tmp_path / "split.json"), ["wandb.mode=online"])
    arms = [Arm("scratch", "", BackboneSpec("x"), "d", "scratch", 10)]
    arms += [Arm(name, "", BackboneSpec("x"), name, "scratch", 10) for name in names]
    track(SimpleNamespace(suite=suite, out=out), arms)
    assert [run.settings["name"] for run in begun] == ["scratch", *names]
    assert all("finetune/dice" in run.lines[0] for run in begun), "each arm has scores of its own"


@pytest.mark.parametrize("overrides", [[], ["wandb.mode=disabled"]])
def test_nothing_is_told_unless_asked(finished, begun, overrides):
    track(*finished(*overrides)[:2])
    assert not begun


def test_what_wandb_refuses_is_said(finished, monkeypatch, capsys):
    def refuse(**_):
        raise wandb.Error("no\nserver")

    monkeypatch.setattr(wandb, "init", refuse)
    track(*finished("wandb.mode=online")[:2])
    assert capsys.readouterr().err == "the report is written, but wandb did not note it: no server\n"
