"""Trains pretext tasks for some steps in the whole loop: a rank of tests/core/test_ranks_in_the_loop.py.

python every_task.py STORE FOLDER TASK...
"""

from __future__ import annotations

import sys
from pathlib import Path

from ssl3d.config import Recipe, load
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.vit import ViT
from ssl3d.testing.matrix import model_node, refusal, small_backbone, task_classes, task_node
from ssl3d.testing.teachers import with_teachers
from ssl3d.train import train

STEPS, BATCH = 20, 4


def recipe(name: str, store: Path, folder: Path) -> Recipe:
    """A tiny recipe of a task, in float64, on the first network that it takes."""
    (task,) = (cls for cls in task_classes() if cls.__name__ == name)
    family = next(f for f in (ResEncUNet, ViT) if refusal(task, f) is None)
    return load(
        {
            "run": {
                "dir": str(folder / name), "steps": STEPS, "precision": "64-true", "log_every": 1, "preview_every": 0,
                "holdout_every": 0, "collapse_every": 0,
            },
            "data": {"store": str(store), "batch_size": BATCH, "workers": 0},
            "model": model_node(family),
            "task": with_teachers(task_node(task, small_backbone(family)), folder / "teachers"),
            # SGD: Adam would blow the rounding of gradients that are zero (biases before a norm) up to whole steps
            "optim": {"lr": 1e-2, "name": "sgd", "momentum": 0.9, "warmup_steps": 5, "clip_norm": 1.0, "ema": 0.9},
        }
    )  # fmt: skip


def main() -> None:
    store, folder = (Path(argument) for argument in sys.argv[1:3])
    for name in sys.argv[3:]:
        train(recipe(name, store, folder))


if __name__ == "__main__":
    main()
