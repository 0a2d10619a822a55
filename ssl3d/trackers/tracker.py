"""Who is told what a run logs, beside metrics.jsonl: wandb, TensorBoard, MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Lives on the first rank from before the first step to the end of the training, and goes on where the one of an
    earlier start of the same run directory was. It changes nothing of the run.
    """

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: its numbers, at its `step`."""

    def picture(self, path: Path, step: int) -> None:
        """A PNG that was drawn after `step`."""

    def warn(self, text: str, step: int) -> None:
        """A sentence that a person should read."""

    def finish(self, failed: bool) -> None:
        """The training is over; nothing more will come."""


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics, its step aside."""
    return {k: float(v) for k, v in line.items() if isinstance(v, (int, float)) and k != "step"}
