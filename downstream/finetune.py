"""One fine-tuning cell: train through the same loop as pre-training, predict, score."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from downstream.arms import Arm
from downstream.context import TEST, WORK, Cell, Context
from downstream.cost import step_cost
from downstream.freezing import Frozen, Train, count_trained
from downstream.inference import predict, read_image
from downstream.measure import Choice, Measure, faults, positive
from downstream.schedule import FinetuneOptim
from downstream.scoring import finish, keep_picture, score_case
from downstream.segmentation import Segmentation
from downstream.snapshots import Keep, read_kept
from downstream.sparse import draw_slices
from ssl3d import config
from ssl3d.checkpoint import load_objective
from ssl3d.regions import Size3
from ssl3d.seeding import mix
from ssl3d.tasks.task import Objective
from ssl3d.train import train

TARGET = f"{Segmentation.__module__}.{Segmentation.__name__}"
Transfer = Literal["encoder", "encoder+decoder"]


@dataclass(kw_only=True)
class Training(Measure):
    """Supervised training from each arm's weights, through the same loop as pre-training; a subclass says of what.

    `transfer`: which part of the pre-trained weights is loaded; the rest, and the head, start fresh and equal in every
    arm. `optim`: the schedule, and the grid of which each arm gets its best. `augment`: as in a recipe's task, or null.
    `window`: voxels of an inference window (null: patch_size). A larger one saves time and can cost far more than
    it saves: instance norm sees other statistics (docs/evaluation.md). `score_at`: optimiser steps after which the test
    patients are scored too, for learning speed; it changes nothing of the training.
    """

    patch_size: Size3
    steps: int
    batch_size: int
    optim: FinetuneOptim
    seeds: int | list[int] = 3
    transfer: Transfer = "encoder"
    augment: dict[str, Any] | None = None
    window: Size3 | None = None
    score_at: list[int] = field(default_factory=list)

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

    def steps_of(self, arm: Arm) -> int:
        """Optimiser steps of a training of this arm."""
        return self.steps

    def grid(self) -> list[Choice]:
        """All combinations of the optimiser's lists (downstream.schedule)."""
        return self.optim.grid()

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        at = self.score_at
        if self.steps <= 0:  # all that counts in steps would be at fault with it
            return faults(key, [(False, "steps", self.steps, "above 0")])
        own = [
            (self.batch_size > 0, "batch_size", self.batch_size, "above 0"),
            (all(0 < n <= self.steps for n in at), "score_at", at, f"a list of steps from 1 to the {self.steps} of it"),
            (len(set(at)) == len(at), "score_at", at, "a list without repeats"),
        ]
        return [
            *self.optim.check(f"{key}.optim", self.steps),
            *super().check(key),
            *positive(key, "patch_size", self.patch_size),
            *positive(key, "window", self.window),
            *faults(key, own),
        ]

    def settings(self) -> dict[str, Any]:
        """See Measure.settings; what the optimiser's lists leave open is the cell's choice."""
        return super().settings() | {"optim": self.optim.settings()}

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
    """Segmentation by all of the network, or by a part of it.

    `labelled_share`: share of patches centred on a class. `train`: what learns: all, encoder_frozen, decoder or lora
    (downstream.freezing), with `lora_rank` and `lora_alpha`. `slices`: so many annotated slices a labelled volume, the
    rest unknown (downstream.sparse); null: all. `same_time`: where a part alone learns, as many steps as cost what
    `steps` of training everything cost, in counted operations.
    """

    labelled_share: float = 0.33
    train: Train = "all"
    lora_rank: int = 4
    lora_alpha: float = 8.0
    slices: int | None = None
    same_time: bool = False

    PICTURES: ClassVar[bool] = True

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        share, optim, frozen = self.labelled_share, self.optim, self.train in ("encoder_frozen", "decoder")
        rule = f"left out: train is {self.train}, and no parameter of the encoder learns"
        own = [
            (0 <= share <= 1, "labelled_share", share, "between 0 and 1"),
            (self.lora_rank > 0, "lora_rank", self.lora_rank, "above 0"),
            (self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "above 0"),
            (self.slices is None or self.slices > 0, "slices", self.slices, "null or above 0"),
            (not frozen or optim.layer_decay == [None], "optim.layer_decay", optim.layer_decay, rule),
            (not frozen or not any(optim.freeze_steps), "optim.freeze_steps", optim.freeze_steps, rule),
        ]
        return [*super().check(key), *faults(key, own)]

    def refuse(self, arm: Arm, key: str) -> None:
        """See Measure.refuse."""
        if self.train != "lora":
            return
        try:
            Frozen(arm.backbone(0), self.train, self.lora_rank, self.lora_alpha)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None

    def title(self) -> str:
        """See Measure.title."""
        what = {"encoder_frozen": ", encoder frozen", "decoder": " of the decoder", "lora": " by LoRA"}
        sparse = "" if self.slices is None else f", {self.slices} slice{'s' * (self.slices > 1)} a volume"
        return f"{self.TITLE}{what.get(self.train, '')}{sparse}"

    def baseline(self) -> str:
        """See Measure.baseline."""
        words = {"encoder_frozen": "a frozen random encoder", "decoder": "a frozen random encoder"}
        return words.get(self.train, "a frozen random encoder with LoRA" if self.train == "lora" else self.BASELINE)

    def steps_of(self, arm: Arm) -> int:
        """See Training.steps_of."""
        if not self.same_time or self.train == "all":
            return self.steps
        everything = step_cost(arm.spec, self.patch_size, "all")
        return round(self.steps * everything / step_cost(arm.spec, self.patch_size, self.train, self.lora_rank))

    def describe(self, context: Context, arms: Sequence[Arm]) -> dict[str, Any]:
        """See Measure.describe: also the parameters that learn, of each network, and its steps."""
        counts = {}
        for arm in arms:
            if arm.is_scratch:
                objective = Segmentation(
                    arm.backbone(0),
                    self.patch_size,
                    list(context.classes),
                    train=self.train,
                    lora_rank=self.lora_rank,
                    lora_alpha=self.lora_alpha,
                )
                trained, lora = count_trained(objective)
                own = {"trained": trained, "steps": self.steps_of(arm)}
                counts[arm.name] = own | ({"lora": lora} if self.train == "lora" else {})
        return super().describe(context, arms) | {"train": self.train, "networks": counts}

    def objective(self, context: Context, cell: Cell) -> dict[str, Any]:
        """See Training.objective."""
        return {
            "_target_": TARGET,
            "patch_size": list(self.patch_size),
            "classes": list(context.classes),
            "ignore": context.ignore,
            "labelled_share": self.labelled_share,
            "augment": self.augment,
            "train": self.train,
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "slices": None if self.slices is None else self._slices(context, cell, self.slices),
        }

    def _slices(self, context: Context, cell: Cell, n: int) -> list[list[int]]:
        """[store row, axis, annotated slices ...] of each labelled volume."""
        rows = context.rows_of(cell.labelled)
        return [[row, axis, *at] for row in rows for axis, at in [draw_slices(context, row, n, cell.seed)]]

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
    steps = measure.steps_of(arm)
    return {
        "run": {
            "dir": str(context.out / WORK / context.key(cell)),
            "steps": steps,
            # The search draws its own seeds: a rate must not be chosen on the very trainings it is then judged by.
            "seed": cell.seed if cell.split == TEST else mix(cell.seed, "learning-rate search"),
            "devices": 1,
            "precision": suite.precision,
            "compile": False,
            "log_every": steps,
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
        "optim": measure.optim.section(cell.choice),
        "wandb": {"mode": "disabled"},
    }


def run_finetune(context: Context, measure: Training, cell: Cell) -> None:
    """Train, predict the cell's patients, score them and store the cell. Raises what training raises."""
    settings = config.load(recipe(context, measure, cell))
    shutil.rmtree(settings.run.dir, ignore_errors=True)  # left by a kill; a cell is short, and begins anew
    last = settings.run.steps
    earlier = sorted(set(measure.score_at) - {last}) if cell.split == TEST else []  # a search looks at the end alone
    with contextlib.redirect_stdout(io.StringIO()):  # the evaluation shows its own progress, a cell at a time
        run = train(settings, observers=[Keep(earlier)] if earlier else [])
    objective = load_objective(run)
    trained = objective.state_dict() if not earlier else {k: v.clone() for k, v in objective.state_dict().items()}
    rows: list[dict[str, Any]] = []
    for step in [*earlier, last]:  # the end last: its predictions are those that pictures keep
        objective.load_state_dict(trained if step == last else read_kept(run, step))
        rows += [{"step": step} | row for row in measure.score(context, cell, objective.to(context.device))]
    finish(context, cell, rows)
    shutil.rmtree(run)


def in_precision(context: Context, network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The network under the suite's mixed precision, as it was trained."""
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(context.suite.precision)

    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=half, enabled=half is not None):
            return network(x)

    return run
