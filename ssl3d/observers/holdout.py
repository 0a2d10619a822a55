"""The pretext loss on held-out subjects: it shows over-fitting to the pretext task, and ranks no representations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ssl3d.data.sampling import SamplingPlan
from ssl3d.training import Training

BATCHES = 4


@dataclass
class Holdout:
    """`holdout/loss`: the mean loss over the same regions of held-out subjects each time."""

    every: int
    plan: SamplingPlan

    def observe(self, training: Training) -> Mapping[str, float]:
        size, losses = training.micro_batch, []
        with training.data.reader(self.plan) as reader:
            for i in range(BATCHES):
                batch = training.to_device(reader.read(range(i * size, (i + 1) * size)))
                losses.append(training.objective(batch)["loss"].double())
        return {"holdout/loss": float(torch.stack(losses).mean())}
