"""Fine-tuning for a target of whole volumes: the training of downstream.finetune with another head, loss and score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from downstream.context import Cell, Context
from downstream.finetune import Training, in_precision
from downstream.inference import read_image
from downstream.measure import faults
from downstream.volume import VolumeTarget, mean_over_windows, volume_rows
from downstream.volume_merit import merit
from downstream.volume_objective import Pooling, VolumeClassification, VolumeObjective, VolumeRegression
from ssl3d.tasks.task import Objective


@dataclass(kw_only=True)
class VolumeFinetune(Training):
    """Classification or regression of the suite's target by the whole encoder and a pooled head.

    Trained on random crops of `patch_size`; a prediction is the mean over the windows of a volume. `pooling`: of the
    features of a window, mean or attention (downstream.volume_objective); `balanced`: classes weigh the same in the
    loss, whatever their shares.
    """

    pooling: Pooling = "mean"
    balanced: bool = True

    TITLE: ClassVar[str] = "Fine-tuning"
    VOLUMES: ClassVar[bool] = True

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        rule = "encoder: a pooled head has no decoder"
        own = [(self.transfer == "encoder", "transfer", self.transfer, rule)]
        return [*super().check(key), *faults(key, own)]

    def merit(self, rows: pd.DataFrame) -> float:
        """See Measure.merit; downstream.volume_merit."""
        return merit(rows)

    def objective(self, context: Context, cell: Cell) -> dict[str, Any]:
        """See Training.objective."""
        target = context.volume_target
        kind = VolumeClassification if target.classes else VolumeRegression
        own = (
            {"codes": list(target.codes), "shares": class_shares(target, cell.labelled), "balanced": self.balanced}
            if target.classes
            else dict(zip(("mean", "std"), moments(target, cell.labelled)))
        )
        return {
            "_target_": f"{kind.__module__}.{kind.__name__}",
            "patch_size": list(self.patch_size),
            "column": target.column,
            **own,
            "pooling": self.pooling,
            "augment": self.augment,
        }

    def score(self, context: Context, cell: Cell, objective: Objective) -> list[dict[str, Any]]:
        """See Training.score."""
        assert isinstance(objective, VolumeObjective)
        network = in_precision(context, objective.predict)
        window = self.window or self.patch_size
        rows = []
        for patient in cell.scored:
            for row in context.rows[patient]:
                image = read_image(context.store, row, context.suite.normalise)
                found = mean_over_windows(network, image, window, context.suite.overlap, context.device)
                rows += volume_rows(context, patient, row, found)
        return rows


def class_shares(target: VolumeTarget, labelled: Sequence[str]) -> list[float]:
    """The share of each class among labelled patients, one patient more counted in each class.

    So that a class that nobody of few labelled patients has stays possible, and is weighted finitely.
    """
    truth, weight = target.weighted(labelled)
    counts = np.bincount(truth.astype(int), weights=weight, minlength=len(target.classes)) + 1
    return [float(share) for share in counts / counts.sum()]


def moments(target: VolumeTarget, labelled: Sequence[str]) -> tuple[float, float]:
    """(mean, standard deviation) over labelled patients; deviation 1 where they do not differ."""
    truth, weight = target.weighted(labelled)
    mean = float(np.average(truth, weights=weight))
    std = float(np.sqrt(np.average((truth - mean) ** 2, weights=weight)))
    return mean, std or 1.0
