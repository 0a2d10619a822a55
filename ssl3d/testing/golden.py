"""Golden runs: the losses of 20 steps of every small recipe, shrunk until a family takes a second or two.

A change that is no change of computation leaves them as they are. After a wanted one, on each torch that has files:

    python -m ssl3d.testing.golden tests/golden          (all families; names after it: those alone)

and the reason in the commit. A file a torch minor version: kernels change between them.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ssl3d import config, schema
from ssl3d.config import Recipe
from ssl3d.log import METRICS_FILE, read_metrics
from ssl3d.models.backbone import Backbone
from ssl3d.tasks.task import PretextTask
from ssl3d.terminal import say
from ssl3d.testing.matrix import model_node, small_backbone, small_size, small_task, task_node
from ssl3d.testing.small_store import write_small
from ssl3d.testing.teachers import with_teachers
from ssl3d.train import train

STEPS = 20
VOLUME = (40, 72, 80)  # what the largest of the shrunk inputs fits
LARGE = 2**13  # voxels of an input from which on a step sees one sample where the loss takes one
RTOL = 1e-4
# float64: processors round float32 differently, and 20 steps of an optimiser make more than RTOL of it
RUN = {
    "steps": STEPS, "seed": 0, "devices": 1, "precision": "64-true", "compile": False, "accumulate": 1, "log_every": 1,
    "checkpoint_every": 0, "preview_every": 0, "holdout_every": 0, "collapse_every": 0,
}  # fmt: skip


def families() -> list[str]:
    """The recipes for CPUs: one of every task and network that has a recipe.

    Without those of Swin UNETR, whose least input has 65,536 voxels: too slow for every run of the tests.
    """
    return [name for name in config.names() if name.endswith("_s") and not name.endswith("_swin_s")]


def shrunk(name: str, store: Path, folder: Path) -> Recipe:
    """A recipe with its own augmentation, loss and optimiser, on the smallest network of its family."""
    values = config.read(name)
    family = schema.target_class(values["model"], Backbone, "model")
    task = schema.target_class(values["task"], PretextTask, "task")
    channels = {"in_channels": values["model"].get("in_channels", 1)}
    backbone = small_backbone(family)
    alone = math.prod(small_size(backbone)) > LARGE and task_samples(task, backbone) == 1
    values["run"] = {"dir": str(folder), **RUN}
    values["data"] |= {"store": str(store), "batch_size": 1 if alone else 2, "workers": 0, "holdout": 0.0}
    values["model"] = model_node(family) | channels
    values["task"] = with_teachers(shrunk_task(values["task"], backbone), folder)
    values["optim"]["warmup_steps"] = 5
    return config.load(values | {"wandb": {"mode": "disabled"}})


def shrunk_task(node: Mapping[str, Any], backbone: Backbone) -> dict[str, Any]:
    """A task as its recipe has it, with the smallest sizes; of a task of tasks, each of them."""
    if "tasks" in node:
        return {**node, "tasks": {name: shrunk_task(part, backbone) for name, part in node["tasks"].items()}}
    small = task_node(schema.target_class(node, PretextTask, "task"), backbone)
    small = {key: value for key, value in small.items() if not key.endswith("augment")}  # the recipe's own
    return {**node, **small}


def task_samples(task: type, backbone: Backbone) -> int:
    """The least samples of a step that the loss of a task takes."""
    made = small_task(task, backbone)
    return max(2 if made.spans_batch else 1, made.region.group)


def losses(name: str, store: Path, folder: Path) -> list[float]:
    """The loss of each of STEPS steps, in float64 on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = train(shrunk(name, store, folder))
    finally:
        torch.set_num_threads(threads)
    return [line["loss"] for line in read_metrics(run / METRICS_FILE) if "loss" in line]


def golden_file(folder: Path, name: str) -> Path:
    """Where the losses of a family lie for this torch."""
    major, minor = torch.__version__.split(".")[:2]
    return folder / f"{name}.torch{major}.{minor}.txt"


def write_store(folder: Path) -> Path:
    """The volumes that golden runs are trained on."""
    return write_small(folder / "golden.zarr", 4, VOLUME)


def main(arguments: list[str]) -> None:
    """Write the files of all families, or of those named after the folder."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        store = write_store(Path(temporary))
        for name in arguments[1:] or families():
            found = losses(name, store, Path(temporary, name))
            golden_file(folder, name).write_text("".join(f"{value:.9g}\n" for value in found))
            say(f"{golden_file(folder, name)}: {found[0]:.6g} to {found[-1]:.6g}")


if __name__ == "__main__":
    main(sys.argv[1:])
