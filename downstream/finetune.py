"""One fine-tuning cell: train through the same loop as pre-training, predict, score."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from downstream.arms import Arm
from downstream.context import TEST, Cell, Context
from downstream.inference import predict, read_image
from downstream.measure import Choice, Measure, faults, positive
from downstream.scoring import finish, keep_picture, score_case
from downstream.segmentation import Segmentation
from ssl3d import config
from ssl3d.checkpoint import load_objective
from ssl3d.regions import Size3
from ssl3d.seeding import mix
from ssl3d.tasks.task import Objective
from ssl3d.train import train

WORK = "work"  # OUT/work/<key>: the run directory of a training under way, removed when it is scored
TARGET = f"{Segmentation.__module__}.{Segmentation.__name__}"
Transfer = Literal["encoder", "encoder+decoder"]


@dataclass
class FinetuneOptim:
    """As a recipe's optim; of several `lr` each arm gets the one that is best on the validation patients."""

    lr: list[float]
    name: Literal["sgd", "adamw"] = "adamw"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Literal["poly", "cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    clip_norm: float | None = 12.0


@dataclass(kw_only=True)
class Training(Measure):
    """Supervised training from each arm's weights, through the same loop as pre-training; a subclass says of what.

    `transfer`: which part of the pre-trained weights is loaded; the rest, and the head, start fresh and equal in every
    arm. `augment`: as in a recipe's task, or null. `window`: voxels of an inference window (null: patch_size); one that
    holds a whole small volume saves many overlapping ones.
    """

    patch_size: Size3
    steps: int
    batch_size: int
    optim: FinetuneOptim
    seeds: int | list[int] = 3
    transfer: Transfer = "encoder"
    augment: dict[str, Any] | None = None
    window: Size3 | None = None

    TITLE: ClassVar[str] = "Fine-tuning"

    def objective(self, context: Context, cell: Cell) -> dict[str, Any]:
        """The recipe's task: what is trained beside the backbone, and by which loss."""
        raise NotImplementedError

    def score(self, context: Context, cell: Cell, objective: Objective) -> list[dict[str, Any]]:
        """Rows (results.CELL_COLUMNS) of the cell's patients from a trained objective, in eval mode on the device."""
        raise NotImplementedError

    def last_step(self) -> int:
        """See Measure.last_step."""
        return self.steps

    def grid(self) -> list[Choice]:
        """The learning rates, from the smallest on."""
        return [(("lr", lr),) for lr in sorted(self.optim.lr)]

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        lr = self.optim.lr
        own = [
            (self.steps > 0, "steps", self.steps, "above 0"),
            (self.batch_size > 0, "batch_size", self.batch_size, "above 0"),
            (bool(lr) and min(lr) > 0, "optim.lr", lr, "a list of rates above 0"),
            (len(set(lr)) == len(lr), "optim.lr", lr, "a list without repeats"),
        ]
        return [
            *super().check(key),
            *positive(key, "patch_size", self.patch_size),
            *positive(key, "window", self.window),
            *faults(key, own),
        ]

    def settings(self) -> dict[str, Any]:
        """See Measure.settings; the learning rate is the cell's choice."""
        values = super().settings()
        return values | {"optim": {k: v for k, v in values["optim"].items() if k != "lr"}}

    def sizes(self) -> dict[str, Size3]:
        """See Measure.sizes."""
        return {"patch_size": self.patch_size} | ({} if self.window is None else {"window": self.window})

    def init(self, arm: Arm) -> str:
        """See Measure.init."""
        return "random" if arm.is_scratch else self.transfer

    def run(self, context: Context, cells: Sequence[Cell]) -> None:
        """Train and score each cell."""
        for cell in cells:
            run_finetune(context, self, cell)


@dataclass(kw_only=True)
class Finetune(Training):
    """Segmentation by the whole network. `labelled_share`: share of patches centred on a class."""

    labelled_share: float = 0.33

    PICTURES: ClassVar[bool] = True

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        share = self.labelled_share
        return [
            *super().check(key),
            *faults(key, [(0 <= share <= 1, "labelled_share", share, "between 0 and 1")]),
        ]

    def objective(self, context: Context, cell: Cell) -> dict[str, Any]:
        """See Training.objective."""
        return {
            "_target_": TARGET,
            "patch_size": list(self.patch_size),
            "classes": list(context.classes),
            "ignore": context.ignore,
            "labelled_share": self.labelled_share,
            "augment": self.augment,
        }

    def score(self, context: Context, cell: Cell, objective: Objective) -> list[dict[str, Any]]:
        """See Training.score."""
        assert isinstance(objective, Segmentation)
        network = in_precision(context, objective.logits)
        rows = []
        for patient in cell.scored:
            for row in context.rows[patient]:
                image = read_image(context.store, row, context.suite.normalise)
                window = self.window or self.patch_size
                logits = predict(network, image, window, context.suite.overlap, context.device)
                probabilities = torch.softmax(logits, dim=0).numpy()
                keep_picture(context, cell, row, probabilities)
                rows += score_case(context, patient, row, probabilities)
        return rows


def recipe(context: Context, measure: Training, cell: Cell) -> dict[str, Any]:
    """The recipe of a cell. Only model.init, and what was tuned, differ between arms."""
    suite, arm = context.suite, cell.arm
    optim = {k: getattr(measure.optim, k) for k in measure.optim.__dataclass_fields__} | dict(cell.choice)
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
        "task": measure.objective(context, cell),
        "optim": optim,
        "wandb": {"mode": "disabled"},
    }


def run_finetune(context: Context, measure: Training, cell: Cell) -> None:
    """Train, predict the cell's patients, score them and store the cell. Raises what training raises."""
    settings = config.load(recipe(context, measure, cell))
    shutil.rmtree(settings.run.dir, ignore_errors=True)  # left by a kill; a cell is short, and begins anew
    with contextlib.redirect_stdout(io.StringIO()):  # the evaluation shows its own progress, a cell at a time
        run = train(settings)
    objective = load_objective(run).to(context.device)
    finish(context, cell, measure.score(context, cell, objective))
    shutil.rmtree(run)


def in_precision(context: Context, network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The network under the suite's mixed precision, as it was trained."""
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(context.suite.precision)

    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=half, enabled=half is not None):
            return network(x)

    return run
