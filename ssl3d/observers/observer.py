"""Who looks at a run between two steps, and changes nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ssl3d.training import Training


class Observer(Protocol):
    """Called on the first rank after every `every`-th step and the last, with the objective in eval mode, no gradients
    and the run's precision. Reads samples of its own; what it draws at random it seeds itself, so that a run with it
    and one without end with the same bits.
    """

    every: int

    def observe(self, training: Training) -> Mapping[str, float]:
        """What is logged at this step, by name (`holdout/loss`)."""
