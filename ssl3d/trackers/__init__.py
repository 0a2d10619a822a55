"""Trackers of a run: wandb, TensorBoard, MLflow, as the recipe asks."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl3d.config import ConfigError, Recipe
from ssl3d.trackers.tracker import Tracker
from ssl3d.trackers.wandb import Wandb, mode_of


def require(recipe: Recipe) -> None:
    """Raise ConfigError when the package of a tracker in run.trackers is not installed."""
    faults = [
        f"run.trackers names {name}, which is not installed: pip install 'ssl3d[{name}]'"
        for name in recipe.run.trackers
        if importlib.util.find_spec(name) is None
    ]
    if faults:
        raise ConfigError(faults)


def trackers_of(recipe: Recipe, folder: Path, first_rank: bool, lineage: Mapping[str, Any]) -> list[Tracker]:
    """Those that the recipe asks for, on the first rank. `lineage`: what names the data (RunData.lineage)."""
    made: list[Tracker] = []
    if not first_rank:
        return made
    if mode_of(recipe) != "disabled":
        made.append(Wandb(recipe, folder, lineage))
    if "tensorboard" in recipe.run.trackers:
        from ssl3d.trackers.tensorboard import TensorBoard

        made.append(TensorBoard(folder))
    if "mlflow" in recipe.run.trackers:
        from ssl3d.trackers.mlflow import MLflow

        made.append(MLflow(recipe, folder, lineage))
    return made
