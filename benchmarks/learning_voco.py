"""Whether VoCo learns what it is asked: predicted against true overlap on volumes it was not trained on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from ssl3d import config
from ssl3d.checkpoint import load_objective, open_run
from ssl3d.data.loader import RegionLoader
from ssl3d.data.sampling import SamplingPlan
from ssl3d.data.store import open_store
from ssl3d.losses.overlap import positive_term
from ssl3d.tasks.voco import VoCo

REGIONS = 64


@dataclass(frozen=True)
class Agreement:
    """`predicted` and `overlap` (N,): pairs of a random and a base crop. `positive`: the positive term, and `at_zero`
    what it would be if every prediction were 0 (the published plateau)."""

    predicted: NDArray[np.float64]
    overlap: NDArray[np.float64]
    positive: float
    at_zero: float
    steps: int
    volumes: int

    @property
    def spearman(self) -> float:
        """Rank correlation over all pairs, those without overlap included."""
        return float(spearmanr(self.predicted, self.overlap).statistic)

    @property
    def share_of_plateau(self) -> float:
        return self.positive / self.at_zero

    def line(self) -> dict[str, float]:
        """The numbers of the table, without the pairs."""
        names = ("steps", "volumes", "spearman", "positive", "at_zero", "share_of_plateau")
        return {name: getattr(self, name) for name in names}


@torch.no_grad()
def agreement(run: Path, subjects: Collection[str], store: Path | None = None, regions: int = REGIONS) -> Agreement:
    """Judge a trained VoCo on so many regions of the `subjects` of a store, none of which it may have seen.

    `store`: its own unless said.
    """
    task = load_objective(run)
    assert isinstance(task, VoCo)
    content = open_run(run)
    recipe = config.load(content["recipe"])
    plan = SamplingPlan(
        [open_store(store or cast(str, recipe.data.store))], task.region, recipe.run.seed + 1, include=set(subjects),
        patch_size=task.placed_size,
    )  # fmt: skip
    found = []
    with RegionLoader(plan, 1, workers=0, normalise=recipe.data.normalise) as reader:
        for number in range(regions):
            batch = reader.read(range(number, number + 1)).normalised()
            images, overlap = task.draw_crops(batch)
            _, predicted = task.compare(*task.embed(images, 1), overlap)
            found.append((predicted[0].double(), overlap[0].double()))
    predicted, overlap = (torch.stack(x) for x in zip(*found))
    terms = [float(positive_term(p, overlap).mean()) for p in (predicted, torch.zeros_like(overlap))]
    return Agreement(predicted.flatten().numpy(), overlap.flatten().numpy(), *terms, content["step"], len(plan.volumes))
