"""Weights on the way: kept at some steps of a training, so that they can be scored after it, like its last ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ssl3d import checkpoint_file
from ssl3d.training import Training

STATE = "state"


class Keep:
    """An observer that writes the objective's state after each of `steps`: the moving average where a run keeps one.

    It draws nothing at random and changes nothing: the training ends with the same bits as without it.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = frozenset(steps)
        self.every = math.gcd(*steps)

    def observe(self, training: Training) -> Mapping[str, float]:
        """See ssl3d.observers.observer.Observer."""
        if training.step in self.steps:
            average = training.average
            state = training.objective.state_dict() if average is None else average.state
            checkpoint_file.write(_place(training.folder, training.step), {STATE: state})
        return {}


def read_kept(run: Path, step: int) -> dict[str, Tensor]:
    """The state that `Keep` wrote after a step, on the CPU."""
    state: dict[str, Tensor] = checkpoint_file.read(_place(run, step))[STATE]
    return state


def _place(run: Path, step: int) -> Path:
    return run / f"after_{step}.pt"
