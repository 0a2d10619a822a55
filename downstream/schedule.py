"""How a fine-tuning's optimiser runs, and the grid from which each arm gets its best on validation patients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from downstream.measure import Choice, faults

Schedule = Literal["poly", "cosine", "constant"]
AXES = ("lr", "schedule", "warmup_steps", "layer_decay", "freeze_steps")  # lists in a suite; a lone value is one of one


@dataclass
class FinetuneOptim:
    """As a recipe's optim, with lists: of all combinations of their values each arm gets its best on validation.

    `lr`; `schedule` after the warm-up; `warmup_steps`; `layer_decay`: factor on the rate from each layer of the encoder
    to the one below (null: none; Clark et al., arXiv 2003.10555; Bao et al., arXiv 2106.08254); `freeze_steps`: for so
    many steps only the part named `first` learns: head, which is all but the encoder, or encoder. `ema`: decay of a
    moving average of the weights, which is scored in their place.
    """

    lr: list[float]
    name: Literal["sgd", "adamw"] = "adamw"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: list[Schedule] = field(default_factory=lambda: ["cosine"])
    warmup_steps: list[int] = field(default_factory=lambda: [0])
    layer_decay: list[float | None] = field(default_factory=lambda: [None])
    freeze_steps: list[int] = field(default_factory=lambda: [0])
    first: Literal["head", "encoder"] = "head"
    clip_norm: float | None = 12.0
    ema: float | None = None

    def grid(self) -> list[Choice]:
        """All combinations of the lists, the learning rate first, from the smallest on; it is always named."""
        named = [name for name in AXES if name == "lr" or len(getattr(self, name)) > 1]
        values = [sorted(self.lr) if name == "lr" else getattr(self, name) for name in named]
        return [tuple(zip(named, combination)) for combination in itertools.product(*values)]

    def settings(self) -> dict[str, Any]:
        """What a cell's choice does not say: axes of one value, but the rate, and all that is no axis."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        lone = {name: values[name][0] for name in AXES if name != "lr" and len(values[name]) == 1}
        return {name: value for name, value in values.items() if name not in AXES} | lone

    def section(self, choice: Choice) -> dict[str, Any]:
        """The optim section of the recipe of a cell with this choice."""
        values = self.settings() | dict(choice)
        first, steps = values.pop("first"), values.pop("freeze_steps")
        waits = "encoder_freeze_until" if first == "head" else "rest_freeze_until"
        return values | {waits: steps}

    def check(self, key: str, steps: int) -> list[str]:
        """Values out of range, a sentence each that begins with `key`; `steps` of a training."""
        decay = [d for d in self.layer_decay if d is not None]
        rules: Sequence[tuple[bool, str, Any, str]] = [
            (not self.lr or min(self.lr) > 0, "lr", self.lr, "a list of rates above 0"),
            (all(0 <= n < steps for n in self.warmup_steps), "warmup_steps", self.warmup_steps,
             f"from 0 to below the {steps} steps"),
            (all(0 <= n < steps for n in self.freeze_steps), "freeze_steps", self.freeze_steps,
             f"from 0 to below the {steps} steps"),
            (all(0 < d <= 1 for d in decay), "layer_decay", self.layer_decay, "null or above 0 and at most 1"),
            (self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more"),
            (self.ema is None or 0 <= self.ema < 1, "ema", self.ema, "null or at least 0 and below 1"),
        ]  # fmt: skip
        lists = [(bool(getattr(self, a)), a, getattr(self, a), "a list that is not empty") for a in AXES]
        once = [(len(set(getattr(self, a))) == len(getattr(self, a)), a, getattr(self, a), "a list without repeats")
                for a in AXES]  # fmt: skip
        return faults(key, [*lists, *rules, *once])
