"""A folder to publish: safetensors, the network's configuration, the recipe, the loss curve and a model card.

The card is made from the run: what it says was counted or measured there. No subject, path or project name leaves the
run: a recipe's paths become ???, its selections of subjects and its wandb section are dropped.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd

from ssl3d import __version__
from ssl3d.export.folder import ExportFolder
from ssl3d.export.hub_card import model_card
from ssl3d.export.report import ExportReport
from ssl3d.export.safetensors import write_tensors
from ssl3d.export.source import Source
from ssl3d.models.backbone import Backbone

SEEN, METRICS, RECIPE, RESULTS = "seen.parquet", "metrics.jsonl", "recipe.yaml", "results.csv"
_EVALUATIONS = ("evaluate", "../evaluate", "eval", "../eval")  # from the run; the quickstart writes ../evaluate
_SELECTIONS = ("include", "exclude")


def export_hub(source: Source | Backbone, out: Path, strict: bool = False) -> ExportReport:
    """Write model.safetensors, model.json, config.json, README.md (the card) and the report to `out`; from a run
    directory also recipe.yaml and curve.png.

    `strict`: refuse a run whose decoder is fresh. Raises ValueError as the safetensors target.
    """
    source = Source(source) if isinstance(source, Backbone) else source
    with ExportFolder(out, "hub") as folder:
        report = write_tensors(source, folder, "hub folder", strict)
        _write_shown(source, folder, report)
        report.write(folder)
    return report


def _write_shown(source: Source, folder: ExportFolder, report: ExportReport) -> None:
    """What a hub shows: the configuration, the recipe, the curve and the card."""
    recipe, losses, table = None, None, None
    counts: dict[str, int] = {}
    if source.run is not None:
        recipe = publishable_recipe(source.run / RECIPE)
        losses = loss_curve(source.run / METRICS)
        counts = data_counts(source.run / SEEN)
        table = evaluation_table(source.run)
    else:
        report.notes.append("no run directory was given: the card has no recipe, curve and data counts")
    spec = dataclasses.asdict(source.backbone.spec())
    config = {"library_name": "ssl3d", "ssl3d": __version__, "backbone": spec, "provenance": report.provenance}
    folder.write_json("config.json", config)
    if recipe is not None:
        from omegaconf import OmegaConf

        folder.write_text(RECIPE, OmegaConf.to_yaml(OmegaConf.create(recipe)))
    if losses is not None:
        folder.write("curve.png", lambda path: _draw(losses, path))
    if source.run is not None and table is None:
        report.notes.append("no evaluation of this run was found beside it: the card says so")
    folder.write_text("README.md", model_card(source, report, recipe, losses, counts, table))


def publishable_recipe(path: Path) -> dict[str, Any] | None:
    """The completed recipe without paths, selections of subjects and wandb; None when there is none."""
    if not path.exists():
        return None
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    content.pop("wandb", None)
    data = content.setdefault("data", {})
    data["store"] = "???"
    for key in _SELECTIONS:
        data.pop(key, None)
    return _without_paths(content)


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return "???" if isinstance(value, str) and ("/" in value or "\\" in value) else value


def loss_curve(path: Path) -> pd.DataFrame | None:
    """Columns step and loss, as logged; None when nothing was."""
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [(line["step"], line["loss"]) for line in lines if "loss" in line and "step" in line]
    return pd.DataFrame(rows, columns=["step", "loss"]) if rows else None


def data_counts(path: Path) -> dict[str, int]:
    """How many volumes of how many subjects the run saw; empty when it is not known."""
    if not path.exists():
        return {}
    seen = pd.read_parquet(path)
    return {"volumes": len(seen), "subjects": int(seen["subject"].nunique())}


def evaluation_table(run: Path) -> pd.DataFrame | None:
    """Test scores of this run beside training from scratch, from results.csv below or beside the run; None without one.

    Means over cases, classes, subsets and seeds: dataset, schedule, n_labelled, metric, scratch, pretrained, cases.
    """
    for folder in _EVALUATIONS:
        path = run / folder / RESULTS
        if not path.exists():
            continue
        results = pd.read_csv(path)
        results = results[results["split"] == "test"]
        if "mean_foreground" in set(results["label"]):
            results = results[results["label"] == "mean_foreground"]
        names = results["run"].map(lambda value: Path(value).name if isinstance(value, str) else "")
        own = results.assign(arm=names.map({"": "scratch", run.resolve().name: "pretrained"})).dropna(subset=["arm"])
        if "pretrained" not in set(own["arm"]):
            continue
        keys = ["dataset", "schedule", "n_labelled", "metric"]
        means = own.pivot_table(index=keys, columns="arm", values="value", aggfunc="mean").reset_index()
        cases = own.groupby(keys)["case"].nunique().reset_index(name="cases")
        return means.merge(cases, on=keys)
    return None


def _draw(losses: pd.DataFrame, path: Path) -> None:
    """The loss over the steps, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(losses["step"], losses["loss"])
    axes.set(xlabel="step", ylabel="pretext loss")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, format="png")
