"""A frozen probe beside the training: the curve that says when to stop, which no pretext loss does.

A linear classifier on the features of all encoder stages at single voxels of a small labelled store, fitted on one half
of its patients and scored on the other: seconds, no network is trained. It is no evaluation: `ssl3d evaluate` is, on
patients that this probe must not have used (probe.exclude).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl3d import config
from ssl3d.config import ConfigError, Recipe
from ssl3d.data.loader import RegionLoader
from ssl3d.data.sampling import SamplingPlan
from ssl3d.data.store import open_store
from ssl3d.models.heads import upsampled_at
from ssl3d.moments import moments
from ssl3d.regions import RegionBatch, RegionSpec
from ssl3d.seeding import mix, numpy_generator
from ssl3d.tasks.task import Objective
from ssl3d.training import Training

SCORE = "probe/score"
VOXELS = 100  # a class and region
L2 = 1e-3  # weight penalty relative to the mean loss


class Probe:
    """`probe/score`: recall of each class (background is one), averaged over the classes, on patients not fitted on.

    Chance is 1 / classes. The same regions and voxels every time, so that the curve is the encoder's alone.
    `guarded`: subjects that the leak guard keeps out.
    Raises ConfigError when probe.store holds no labels, fewer than two patients, or other channels than the network.
    """

    def __init__(self, recipe: Recipe, objective: Objective, guarded: Collection[str] = ()) -> None:
        assert recipe.probe.store is not None
        self.every, self.regions, self._seed = recipe.probe.every, recipe.probe.regions, recipe.run.seed
        store = open_store(recipe.probe.store)
        include = config.subjects(recipe.probe.include, "probe.include")
        exclude = (config.subjects(recipe.probe.exclude, "probe.exclude") or set()) | set(guarded)
        spec = RegionSpec(objective.input_size, labels=True, labelled_share=1.0)
        try:
            every_one = SamplingPlan([store], spec, self._seed, include=include, exclude=exclude)
            patients = sorted({str(store.column("subject")[row]) for row in every_one.rows(0)})
            if len(patients) < 2:
                raise ValueError(f"{recipe.probe.store} has {len(patients)} labelled patient(s), a probe needs two")
            patients.sort(key=lambda patient: mix(self._seed, "probe", patient))
            halves = patients[::2], patients[1::2]
            plans = [SamplingPlan([store], spec, mix(self._seed, "probe"), include=half) for half in halves]
        except ValueError as error:
            raise ConfigError([f"probe.store: {error}"]) from None
        reading: dict[str, Any] = {"workers": 0, "channels": recipe.data.channels, "normalise": recipe.data.normalise}
        self._readers = [RegionLoader(plan, 1, **reading) for plan in plans]
        if self._readers[0].channels != objective.backbone.in_channels:
            raise ConfigError(
                [f"probe.store: its volumes have {self._readers[0].channels} channel(s), the network takes "
                 f"{objective.backbone.in_channels}"]
            )  # fmt: skip

    def observe(self, training: Training) -> Mapping[str, float]:
        (x, y), (test_x, test_y) = (self._voxels(training, reader) for reader in self._readers)
        return {SCORE: score(x, y, test_x, test_y)}

    def _voxels(self, training: Training, reader: RegionLoader) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features (N,F) and labels (N,) of VOXELS voxels a class of each region."""
        backbone, size = training.objective.exported, training.micro_batch
        features, labels = [], []
        for first in range(0, self.regions, size):
            batch = training.to_device(reader.read(range(first, min(first + size, self.regions))))
            stages = backbone.frozen_features(batch.image)
            for i in range(len(batch)):
                voxels, label = self._draw(batch, i)
                at = [upsampled_at(stage[i : i + 1], voxels, batch.size).cpu().numpy() for stage in stages]
                features.append(np.concatenate(at, axis=1))
                labels.append(label)
        return np.concatenate(features), np.concatenate(labels)

    def _draw(self, batch: RegionBatch, i: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Voxels (N,3) of sample i and their labels, at most VOXELS of each class it holds, none that is not valid."""
        assert batch.label is not None
        label = batch.label[i, 0].cpu().numpy()
        usable = np.ones(label.shape, bool) if batch.valid is None else batch.valid[i, 0].cpu().numpy()
        generator = numpy_generator(self._seed, "probe voxels", int(batch.seed[i]))
        chosen = []
        for value in np.unique(label[usable]):
            candidates = np.flatnonzero((label == value) & usable)
            chosen.append(generator.permutation(candidates)[:VOXELS])
        flat = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
        return np.stack(np.unravel_index(flat, label.shape), axis=1), label.ravel()[flat]


def score(
    x: NDArray[np.float32], y: NDArray[np.int64], test_x: NDArray[np.float32], test_y: NDArray[np.int64]
) -> float:
    """Mean recall over the classes of the test voxels, of a logistic regression on standardised features (N,F)."""
    from sklearn.linear_model import LogisticRegression  # a second to import, for runs that are probed

    mean, std = moments(x)
    classes = np.unique(y)
    if len(classes) == 1:
        said = np.full(len(test_y), classes[0])
    else:
        model = LogisticRegression(C=1 / (L2 * len(x)), max_iter=300, class_weight="balanced")
        with warnings.catch_warnings():  # not converged is the same number of iterations for every step of the curve
            warnings.simplefilter("ignore")
            model.fit((x - mean) / std, y)
        said = model.predict((test_x - mean) / std)
    return float(np.mean([(said[test_y == value] == value).mean() for value in np.unique(test_y)]))
