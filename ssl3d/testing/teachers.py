"""Weights for the trained networks that a task asks for: random ones, written as a file that a run reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ssl3d import schema
from ssl3d.export.safetensors import export_safetensors
from ssl3d.models.backbone import Backbone
from ssl3d.tasks.trained_network import TrainedNetwork


def with_teachers(task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The task section with a file below `folder` as `init` of each trained network that has none, at every depth.

    A process writes files of its own, all with the same weights.
    """
    filled = dict(task)
    for key, value in task.items():
        if not isinstance(value, Mapping):
            continue
        is_network = schema.TARGET in value and key == "teacher" and value.get("init") is None
        filled[key] = _written(value, folder / f"{key}-{os.getpid()}") if is_network else with_teachers(value, folder)
    return filled


def _written(node: Mapping[str, Any], out: Path) -> dict[str, Any]:
    completed, faults = schema.check_value({**node, "init": None}, TrainedNetwork, "teacher")
    assert not faults, faults
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Backbone = TrainedNetwork(completed).make()
    out.mkdir(parents=True, exist_ok=True)
    export_safetensors(network, out)
    return {**node, "init": str(out / "model.safetensors")}
