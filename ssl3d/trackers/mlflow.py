"""MLflow: a run where MLFLOW_TRACKING_URI points, of the experiment MLFLOW_EXPERIMENT_NAME or wandb.project."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl3d.config import Recipe
from ssl3d.schema import flat
from ssl3d.trackers.tracker import numbers

ID_FILE = "mlflow_id.txt"
_PARAMETERS = 100  # a request takes no more


class MLflow:
    """Parameters, metrics, pictures and warnings (as tags); the same MLflow run when the run directory is resumed."""

    def __init__(self, recipe: Recipe, folder: Path, lineage: Mapping[str, Any]) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        file = folder / ID_FILE
        if file.exists():
            self._id = file.read_text().strip()
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", recipe.wandb.project)
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        run = self._client.create_run(number, run_name=folder.name, tags={k: str(v) for k, v in lineage.items()})
        self._id = run.info.run_id
        parameters = [Param(k, str(v)[:500]) for k, v in flat(recipe.to_dict()).items()]
        for first in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._id, params=parameters[first : first + _PARAMETERS])
        file.write_text(self._id + "\n")

    def log(self, line: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        now, step = int(1000 * time.time()), line["step"]
        self._client.log_batch(self._id, metrics=[Metric(k, v, now, step) for k, v in numbers(line).items()])

    def picture(self, path: Path, step: int) -> None:
        self._client.log_artifact(self._id, str(path), "previews")

    def warn(self, text: str, step: int) -> None:
        self._client.set_tag(self._id, f"warning.{step}", text)

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
