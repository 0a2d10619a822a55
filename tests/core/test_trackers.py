"""Trackers: each is told all that the run logs, goes on where an earlier start was, and is named when missing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssl3d import checkpoint, cli
from ssl3d.config import ConfigError
from ssl3d.log import read_metrics
from ssl3d.observers.collapse import RANK
from ssl3d.trackers import require
from ssl3d.trackers import wandb as ours
from ssl3d.train import train

WATCHED = ["run.steps=4", "run.log_every=1", "run.preview_every=2", "run.collapse_every=2"]


class Artefact:
    """What wandb.Artifact is told, files included."""

    def __init__(self, name: str, type: str, metadata: dict | None = None) -> None:
        self.name, self.type, self.metadata, self.files, self.added = name, type, metadata, {}, []

    def new_file(self, name: str):
        artefact = self

        class File:
            def __enter__(self):
                self.text = ""
                return self

            def write(self, text: str) -> None:
                self.text += text

            def __exit__(self, *_):
                artefact.files[name] = json.loads(self.text)

        return File()

    def add_file(self, path: str) -> None:
        self.added.append(Path(path).name)


class Run:
    """A run of the stub: what it was begun with and told."""

    def __init__(self, settings: dict) -> None:
        self.settings, self.id = settings, settings["id"] or "made-id"
        self.lines, self.used, self.logged, self.alerts, self.exit_code = [], [], [], [], "running"

    def log(self, values: dict, step: int | None = None) -> None:
        self.lines.append((step, values))

    def use_artifact(self, artefact: Artefact) -> None:
        self.used.append(artefact)

    def log_artifact(self, artefact: Artefact) -> None:
        self.logged.append(artefact)

    def alert(self, title: str, text: str) -> None:
        self.alerts.append((title, text))

    def finish(self, exit_code: int = 0) -> None:
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch) -> list[Run]:
    """wandb replaced by a stub: the runs that were begun."""
    import wandb

    begun: list[Run] = []
    monkeypatch.setattr(wandb, "init", lambda **settings: begun.append(Run(settings)) or begun[-1])
    monkeypatch.setattr(wandb, "Artifact", Artefact)
    monkeypatch.setattr(wandb, "Image", lambda path: Path(path).name)
    monkeypatch.setattr(wandb, "Table", lambda columns, data: SimpleNamespace(columns=columns, data=data))
    return begun


def lose_last(run: Path) -> None:
    """As if the run had been killed before its last checkpoint."""
    (run / checkpoint.FOLDER / checkpoint.LAST).unlink()


def test_wandb_is_told_all_and_goes_on_in_the_same_run(tiny, runs):
    recipe = tiny("wandb.mode=online", *WATCHED)
    run = train(recipe)
    (first,) = runs
    assert first.settings["resume"] == "allow" and first.settings["config"]["run"]["steps"] == 4
    (store,) = first.used
    lineage = first.settings["config"]["data_lineage"]
    assert store.name == f"store-{lineage['fingerprint']}" and store.files["store.json"] == lineage
    assert lineage == {"fingerprint": checkpoint.open_run(run)["seen_digest"], "volumes": 6, "subjects": 6,
                       "stores": ["tiny.zarr"]}  # fmt: skip
    assert [step for step, values in first.lines if "loss" in values] == [1, 2, 3, 4]
    assert (2, {"preview": "step_00000002.png"}) in first.lines
    table = first.lines[-1][1]["observed"]
    assert [row[0] for row in table.data] == [2, 4]
    rank = table.columns.index(RANK)
    assert [row[rank] for row in table.data] == [
        line[RANK] for line in read_metrics(run / "metrics.jsonl") if RANK in line
    ]
    assert first.exit_code == 0
    lose_last(run)
    train(recipe)
    again = runs[1]
    assert again.settings["id"] == "made-id" and [row[0] for row in again.lines[-1][1]["observed"].data] == [2, 4]


@pytest.mark.parametrize("upload", [False, True])
def test_an_export_becomes_an_artefact_of_its_run(tiny, runs, tmp_path, upload):
    run = train(tiny("wandb.mode=online", "run.steps=1", f"wandb.upload={str(upload).lower()}"))
    out = tmp_path / "out"
    assert cli.main(["export", str(run), "--to", "safetensors", "--out", str(out)]) == 0
    exported = runs[1]
    assert exported.settings["id"] == "made-id" and exported.exit_code == 0
    (artefact,) = exported.logged
    assert artefact.name == "export-made-id-safetensors" and artefact.type == "model"
    assert artefact.metadata["seen_digest"] == runs[0].used[0].metadata["fingerprint"]
    files = {f["name"]: f for f in artefact.files["export.json"]["files"]}
    assert files["model.safetensors"]["bytes"] == (out / "model.safetensors").stat().st_size
    assert bool(artefact.added) == upload and set(artefact.added) <= set(files)


def test_an_export_of_an_untracked_run_and_one_that_wandb_refuses(tiny, runs, tmp_path, capsys, monkeypatch):
    run = train(tiny("run.steps=1"))
    assert cli.main(["export", str(run), "--to", "safetensors", "--out", str(tmp_path / "a")]) == 0
    assert not runs
    import wandb

    def refuse(**_):
        raise wandb.Error("no\nserver")

    (run / ours.ID_FILE).write_text("x\n")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("mode: auto", "mode: online"))
    monkeypatch.setattr(wandb, "init", refuse)
    assert cli.main(["export", str(run), "--to", "safetensors", "--out", str(tmp_path / "b")]) == 0
    assert capsys.readouterr().err == "the export is written, but wandb did not note it: no server\n"


def test_tensorboard_holds_the_same_numbers_after_a_resume(tiny):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = tiny("run.trackers=[tensorboard]", *WATCHED)
    run = train(recipe)
    lose_last(run)
    train(recipe)
    events = accumulators.EventAccumulator(str(run / "tensorboard")).Reload()
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    told = events.Scalars("loss")
    assert [e.step for e in told] == [1, 2, 3, 4]
    assert [e.value for e in told] == pytest.approx([line["loss"] for line in lines])
    assert [e.step for e in events.Images("preview")] == [2, 4]


@pytest.mark.slow
def test_mlflow_is_told_all_and_goes_on_in_the_same_run(tiny, tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    recipe = tiny("run.trackers=[mlflow]", *WATCHED)
    run = train(recipe)
    lose_last(run)
    train(recipe)
    client = tracking.MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "ssl3d"]
    (told,) = client.search_runs([experiment.experiment_id])
    assert told.info.status == "FINISHED" and told.data.params["run.steps"] == "4"
    assert told.data.tags["volumes"] == "6"
    history = {m.step: m.value for m in client.get_metric_history(told.info.run_id, "loss")}
    assert history == pytest.approx({n["step"]: n["loss"] for n in read_metrics(run / "metrics.jsonl") if "loss" in n})
    assert [f.path for f in client.list_artifacts(told.info.run_id, "previews")] == [
        f"previews/step_0000000{step}.png" for step in (2, 4)
    ]


def test_a_missing_package_is_named_before_anything_is_built(tiny, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"run\.trackers names mlflow, .*: pip install 'ssl3d\[mlflow\]'"):
        require(tiny("run.trackers=[mlflow]"))
    with pytest.raises(ConfigError, match=r"run\.trackers\.0 is 'comet'"):
        tiny("run.trackers=[comet]")
