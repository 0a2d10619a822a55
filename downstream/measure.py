"""What every way of judging weights has in common: a measure of a suite, with its amounts of labels and its seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from downstream.results import MEAN_FOREGROUND
from ssl3d.regions import Size3

if TYPE_CHECKING:
    from downstream.arms import Arm
    from downstream.context import Cell, Context

Choice = tuple[tuple[str, Any], ...]  # settings that were chosen for an arm: (("lr", 0.01),)


@dataclass
class TuneConfig:
    """The search of a measure's settings, the same budget for every arm, scored on validation patients only.

    It runs at `n_labelled` labelled patients (null: the largest of the measure) with so many `seeds`.
    """

    n_labelled: int | None = None
    seeds: int = 1


@dataclass(kw_only=True)
class Measure:
    """A way of judging weights, as a suite names it; a subclass is one file that computes cells of its kind.

    `n_labelled`: amounts of labelled patients; `seeds`: how many labelled subsets, each with its seed, or a list of
    their numbers; `tune`: the search on validation patients, of measures with more than one entry in `grid()`.
    """

    n_labelled: list[int]
    seeds: int | list[int] = 5
    tune: TuneConfig = field(default_factory=TuneConfig)

    TITLE: ClassVar[str]  # in figures: "Fine-tuning"
    BASELINE: ClassVar[str] = "scratch"  # the arm without pre-training, in words
    TRAINS: ClassVar[bool] = True  # the network itself; False: it stays frozen
    VOLUMES: ClassVar[bool] = False  # it predicts a target of whole volumes; False: the label of every voxel
    PICTURES: ClassVar[bool] = False  # whether cells with `pictures` keep predictions on the stored grid

    def last_step(self) -> int:
        """Optimiser steps at the end of a training; 0 for frozen networks."""
        return 0

    def seed_numbers(self) -> list[int]:
        """3 means 0, 1, 2."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def amounts(self) -> list[int]:
        """All numbers of labelled patients that any of its cells uses."""
        return [*self.n_labelled, *([self.tuned_at()] if self.searches() else [])]

    def tuned_at(self) -> int:
        """Labelled patients of the search."""
        return self.tune.n_labelled or max(self.n_labelled)

    def grid(self) -> list[Choice]:
        """Settings among which each arm gets the best on validation patients; one entry: nothing is searched."""
        return [()]

    def searches(self) -> bool:
        """Whether there is anything to choose."""
        return len(self.grid()) > 1

    def merit(self, rows: pd.DataFrame) -> float:
        """How good the validation rows of one choice and arm are, more is better: mean foreground Dice.

        A patient counts once, however many scans; the last step of each training counts.
        """
        last = rows[rows["step"] == rows["step"].max()]
        dice = last[(last["metric"] == "dice") & (last["label"] == MEAN_FOREGROUND)]
        return float(dice.groupby("patient")["value"].mean().mean())

    def check(self, key: str) -> list[str]:
        """Values out of range, a sentence each that begins with `key`."""
        chosen, amounts = self.seed_numbers(), self.n_labelled
        return faults(key, [
            (bool(chosen) and min(chosen) >= 0, "seeds", self.seeds, "a count above 0 or a list of seeds"),
            (len(set(chosen)) == len(chosen), "seeds", self.seeds, "a list without repeats"),
            (bool(amounts) and min(amounts) > 0, "n_labelled", amounts, "a list of counts above 0"),
            (len(set(amounts)) == len(amounts), "n_labelled", amounts, "a list without repeats"),
            (self.tune.seeds > 0, "tune.seeds", self.tune.seeds, "above 0"),
            ((self.tune.n_labelled or 1) > 0, "tune.n_labelled", self.tune.n_labelled, "null or above 0"),
        ])  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """What decides the values of one of its cells: all but which cells there are."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k not in ("n_labelled", "seeds", "tune")}

    def sizes(self) -> Mapping[str, Size3]:
        """{key: voxels (D,H,W)} of the inputs that every network must take."""
        return {}

    def init(self, arm: Arm) -> str:
        """What was loaded, as results.csv says it."""
        return "random" if arm.is_scratch else "encoder"

    def refuse(self, arm: Arm, key: str) -> None:
        """Raise ValueError, a sentence that begins with `key`, when the arm's network cannot be measured so."""

    def title(self) -> str:
        """What it is called in figures."""
        return self.TITLE

    def baseline(self) -> str:
        """The arm without pre-training, in words."""
        return self.BASELINE

    def describe(self, context: Context, arms: Sequence[Arm]) -> dict[str, Any]:
        """What a report says of it: measures.json."""
        return {"title": self.title(), "baseline": self.baseline(), "trains": self.TRAINS}

    def group(self, context: Context, cell: Cell) -> tuple[Any, ...]:
        """Cells of equal groups are computed together, by one call of `run`; by default each by itself."""
        return (context.key(cell),)

    def run(self, context: Context, cells: Sequence[Cell]) -> None:
        """Compute and store (downstream.scoring.finish) the cells of a group, in this process."""
        raise NotImplementedError


def faults(key: str, rules: Sequence[tuple[bool, str, Any, str]]) -> list[str]:
    """Rules (holds, name, value, what it must be) that do not hold, a sentence each."""
    return [f"{key}.{name} is {value}; it must be {rule}" for holds, name, value, rule in rules if not holds]


def positive(key: str, name: str, size: Size3 | None) -> list[str]:
    """The fault of a size that is not above 0 on every axis."""
    return faults(key, [(size is None or min(size) > 0, name, size, "above 0 on every axis")])


def choice_words(choice: Choice) -> str:
    """ "lr=0.01 schedule=constant"."""
    return " ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in choice)
