"""Pictures of what the task does with the first samples of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ssl3d.disk import when_there_is_room
from ssl3d.log import save_preview
from ssl3d.training import Training

SAMPLES = 4


@dataclass
class Previews:
    """Saves the objective's `preview/*` tensors as previews/step_<step>.png."""

    every: int

    def observe(self, training: Training) -> Mapping[str, float]:
        with training.data.reader(training.data.plan) as reader:
            batch = training.to_device(reader.read(range(max(SAMPLES, training.objective.region.group))))
        drawn, folder = training.objective(batch, preview=True), training.folder / "previews"
        path = when_there_is_room(
            lambda: save_preview(folder, training.step, drawn), folder, training.interruption.asked
        )
        if path is not None:
            for tracker in training.trackers:
                tracker.picture(path, training.step)
        return {}
