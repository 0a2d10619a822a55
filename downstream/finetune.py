"""One fine-tuning cell: train through the same loop as pre-training, predict, score."""

from __future__ import annotations

import contextlib
import io
import shutil
from typing import Any

import torch
from torch import Tensor

from downstream.context import TEST, Cell, Context
from downstream.inference import predict, read_image
from downstream.scoring import finish, keep_picture, score_case
from downstream.segmentation import Segmentation
from ssl3d import config
from ssl3d.checkpoint import load_objective
from ssl3d.seeding import mix
from ssl3d.train import train

WORK = "work"  # OUT/work/<key>: the run directory of a training under way, removed when it is scored
TARGET = f"{Segmentation.__module__}.{Segmentation.__name__}"


def recipe(context: Context, cell: Cell) -> dict[str, Any]:
    """The recipe of a cell. Only model.init, and optim.lr where it was tuned, differ between arms."""
    suite, arm = context.suite, cell.arm
    measure = suite.measures.finetune
    assert measure is not None and cell.lr is not None
    optim = {k: getattr(measure.optim, k) for k in measure.optim.__dataclass_fields__} | {"lr": cell.lr}
    return {
        "run": {
            "dir": str(context.out / WORK / context.key(cell)),
            "steps": measure.steps,
            # The search draws its own seeds: a rate must not be chosen on the very trainings it is then judged by.
            "seed": cell.seed if cell.split == TEST else mix(cell.seed, "learning-rate search"),
            "devices": 1,
            "precision": suite.precision,
            "compile": False,
            "log_every": measure.steps,
            "checkpoint_every": 0,  # the last step is always kept
            "preview_every": 0,
            "holdout_every": 0,
            "collapse_every": 0,
        },
        "data": {
            "store": suite.store,
            "batch_size": measure.batch_size,
            "workers": "auto" if context.device.type == "cuda" else 0,
            "normalise": suite.normalise,
            "include": list(cell.labelled),
        },
        "model": {
            "_target_": arm.spec.target,
            **arm.spec.kwargs,
            "init": arm.run or None,
            "init_part": "encoder" if measure.transfer == "encoder" else "all",
        },
        "task": {
            "_target_": TARGET,
            "patch_size": list(measure.patch_size),
            "classes": list(context.classes),
            "ignore": context.ignore,
            "labelled_share": measure.labelled_share,
            "augment": measure.augment,
        },
        "optim": optim,
        "wandb": {"mode": "disabled"},
    }


def run_finetune(context: Context, cell: Cell) -> None:
    """Train, predict the cell's patients, score them and store the cell. Raises what training raises."""
    measure = context.suite.measures.finetune
    assert measure is not None
    settings = config.load(recipe(context, cell))
    shutil.rmtree(settings.run.dir, ignore_errors=True)  # left by a kill; a cell is short, and begins anew
    with contextlib.redirect_stdout(io.StringIO()):  # the evaluation shows its own progress, a cell at a time
        run = train(settings)
    objective = load_objective(run).to(context.device)
    assert isinstance(objective, Segmentation)
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(context.suite.precision)

    def network(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=half, enabled=half is not None):  # as it was trained
            return objective.logits(x)

    rows = []
    for patient in cell.scored:
        for row in context.rows[patient]:
            image = read_image(context.store, row, context.suite.normalise)
            window = measure.window or measure.patch_size
            logits = predict(network, image, window, context.suite.overlap, context.device)
            probabilities = torch.softmax(logits, dim=0).numpy()
            keep_picture(context, cell, row, probabilities)
            rows += score_case(context, patient, row, probabilities)
    finish(context, cell, rows)
    shutil.rmtree(run)
