"""What a run holds while it trains: the loop changes it, observers look at it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl3d.checkpoint_writer import CheckpointWriter
from ssl3d.config import Recipe
from ssl3d.disk import when_there_is_room
from ssl3d.fabric import Fabric
from ssl3d.interruption import Interruption
from ssl3d.log import WARNING, MetricLog
from ssl3d.optim import WeightAverage
from ssl3d.regions import RegionBatch
from ssl3d.setup_run import RunData
from ssl3d.tasks.task import Objective
from ssl3d.terminal import say
from ssl3d.trackers.tracker import Tracker


@dataclass
class Training:
    """Everything a run holds while it trains."""

    recipe: Recipe
    fabric: Fabric
    folder: Path
    data: RunData
    objective: Objective
    module: Any
    optimizer: Any
    average: WeightAverage | None
    metrics: MetricLog
    trackers: list[Tracker]
    interruption: Interruption
    writer: CheckpointWriter
    step: int = 0  # optimiser steps done
    best: float | None = None  # the highest probe score so far

    @property
    def micro_batch(self) -> int:
        """Regions that pass through the network at a time, over all ranks: what is known to fit."""
        return max(self.recipe.data.batch_size // self.recipe.run.accumulate, self.objective.region.group)

    def tell(self, line: dict[str, Any]) -> None:
        """Write a line of metrics, as soon as the disk has room for it."""
        when_there_is_room(lambda: self.metrics.write(line), self.folder, self.interruption.asked)
        for tracker in self.trackers:
            tracker.log(line)

    def warn(self, text: str) -> None:
        """Say a sentence about the run, and keep it with its step: metrics.jsonl, from there the report; trackers."""
        say(f"{self.folder}: {text}")
        self.tell({"step": self.step, WARNING: text})
        for tracker in self.trackers:
            tracker.warn(text, self.step)

    def to_device(self, batch: RegionBatch) -> RegionBatch:
        """A batch as objectives see it: on the device, normalised, in the run's floating point type."""
        batch = batch.to(self.fabric.device, non_blocking=True).normalised()
        if self.recipe.run.precision == "64-true":
            batch = batch.replace(image=batch.image.double())
        return batch
