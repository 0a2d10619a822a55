"""Weights & Biases: lines, pictures, a table of what the observers saw, and where data and weights come from and go."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl3d.config import Recipe, load
from ssl3d.log import METRICS_FILE, read_metrics
from ssl3d.terminal import say
from ssl3d.trackers.tracker import numbers

if TYPE_CHECKING:
    from ssl3d.export.report import ExportReport

ID_FILE, RECIPE_FILE = "wandb_id.txt", "recipe.yaml"
OBSERVED = ("probe/", "holdout/", "collapse/")


def mode_of(recipe: Recipe) -> str:
    """`auto` means online under a sweep agent, else disabled."""
    if recipe.wandb.mode != "auto":
        return recipe.wandb.mode
    return "online" if os.environ.get("WANDB_SWEEP_ID") else "disabled"


class Wandb:
    """A wandb run, continued under the same id when the run directory is.

    `lineage`: what names the data. It stands in the config, and online it is an artefact that the run uses (wandb has
    no such link offline); exports become artefacts of the run (`log_export`): store -> run -> export.
    """

    def __init__(self, recipe: Recipe, folder: Path, lineage: Mapping[str, Any]) -> None:
        import wandb

        self._folder = folder
        self.run: Any = _begin(recipe, folder, mode_of(recipe), recipe.to_dict() | {"data_lineage": dict(lineage)})
        if mode_of(recipe) == "online":
            store = wandb.Artifact(f"store-{lineage['fingerprint']}", type="dataset", metadata=dict(lineage))
            with store.new_file("store.json") as file:
                json.dump(dict(lineage), file, indent=1)
            self.run.use_artifact(store)

    def log(self, line: Mapping[str, Any]) -> None:
        self.run.log(numbers(line), step=int(line["step"]))

    def picture(self, path: Path, step: int) -> None:
        import wandb

        self.run.log({"preview": wandb.Image(str(path))}, step=step)

    def warn(self, text: str, step: int) -> None:
        self.run.alert(title=f"step {step:,}", text=text)

    def finish(self, failed: bool) -> None:
        rows = observed(self._folder)
        if rows:
            import wandb

            names = sorted({name for row in rows.values() for name in row})
            table = wandb.Table(columns=["step", *names], data=[[s, *map(row.get, names)] for s, row in rows.items()])
            self.run.log({"observed": table})
        self.run.finish(exit_code=1 if failed else 0)


def _begin(recipe: Recipe, folder: Path, mode: str, config: dict[str, Any] | None = None) -> Any:
    """The wandb run of a run directory: the same one again where there is one."""
    import wandb

    id_file = folder / ID_FILE
    run_id = id_file.read_text().strip() if id_file.exists() else os.environ.get("WANDB_RUN_ID")
    run = wandb.init(
        project=recipe.wandb.project,
        group=recipe.wandb.group,
        tags=recipe.wandb.tags,
        name=folder.name,
        id=run_id,
        resume="allow",
        mode=mode,  # type: ignore[arg-type]
        dir=str(folder),
        config=config,
        job_type="train",
    )
    id_file.write_text(run.id + "\n")
    return run


def observed(folder: Path) -> dict[int, dict[str, float]]:
    """{step: what observers saw after it}, of all starts of a run: read from its metrics.jsonl."""
    rows: dict[int, dict[str, float]] = {}
    for line in read_metrics(folder / METRICS_FILE):
        seen = {name: value for name, value in numbers(line).items() if name.startswith(OBSERVED)}
        if seen:
            rows.setdefault(int(line["step"]), {}).update(seen)
    return rows


def run_folder(source: Path) -> Path | None:
    """The run directory that `source`, it or a checkpoint in it, belongs to, when wandb knows it."""
    return next((f for f in (source, source.parent.parent) if (f / ID_FILE).is_file()), None)


def log_export(source: Path, report: ExportReport) -> None:
    """Let the wandb run of an exported run directory know of its export, as one of its artefacts; nothing without one.

    `export.json` names files, sizes and digests; with wandb.upload the files go along. What wandb cannot take is said:
    the export itself is done.
    """
    folder = run_folder(source)
    if folder is None:
        return
    import wandb

    recipe = load(folder / RECIPE_FILE)
    mode = recipe.wandb.mode if recipe.wandb.mode != "auto" else os.environ.get("WANDB_MODE", "online")
    if mode == "disabled":
        return
    try:
        run = _begin(recipe, folder, mode)
        about = {"target": report.target, **report.provenance}
        files = [path for path in report.files if path.is_file()]
        artefact = wandb.Artifact(f"export-{run.id}-{report.target}", type="model", metadata=about)
        with artefact.new_file("export.json") as file:
            json.dump({**about, "files": [_described(path) for path in files]}, file, indent=1)
        for path in files if recipe.wandb.upload else ():
            artefact.add_file(str(path))
        run.log_artifact(artefact)
        run.finish()
    except (wandb.Error, OSError, ValueError) as error:
        say(f"the export is written, but wandb did not note it: {' '.join(str(error).split())}", error=True)


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "blake2b": digest}
