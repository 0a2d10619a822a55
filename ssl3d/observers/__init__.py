"""Observers of a run: pictures, held-out loss, collapse, attention, probe; and what they say in words."""

from __future__ import annotations

import torch

from ssl3d.log import read_metrics
from ssl3d.losses.gather import alone
from ssl3d.models.backbone import TokenBackbone
from ssl3d.observers.attention import Attention
from ssl3d.observers.collapse import Collapse
from ssl3d.observers.holdout import Holdout
from ssl3d.observers.observer import Observer
from ssl3d.observers.previews import Previews
from ssl3d.observers.probe import SCORE, Probe
from ssl3d.observers.words import sentences
from ssl3d.setup_run import due
from ssl3d.sharding import is_sharded, with_whole_weights
from ssl3d.training import Training


def observers_of(training: Training) -> list[Observer]:
    """Those that the recipe asks for. Raises ConfigError when one cannot be made (a probe without labels)."""
    recipe, made = training.recipe, list[Observer]()
    if recipe.run.preview_every:
        made.append(Previews(recipe.run.preview_every))
    if recipe.run.holdout_every and training.data.holdout is not None:
        made.append(Holdout(recipe.run.holdout_every, training.data.holdout))
    if recipe.run.collapse_every:
        made.append(Collapse(recipe.run.collapse_every, training))
        if isinstance(training.objective.backbone, TokenBackbone):
            made.append(Attention(recipe.run.collapse_every))
    if recipe.probe.store is not None and recipe.probe.every:
        scores = (line.get(SCORE) for line in read_metrics(training.metrics.path))
        training.best = max((score for score in scores if score is not None), default=None)
        made.append(Probe(recipe, training.objective, training.data.guarded.probe))
    return made


def observe(training: Training, observers: list[Observer], last: bool) -> bool:
    """Let those look whose turn it is, and log what they saw; whether the probe never scored as high before.

    On the first rank alone: the others go on, or wait for its answer where every rank holds a part of the weights.
    """
    looking = [o for o in observers if last or due(training.step, o.every)]
    if not looking:
        return False
    view = with_whole_weights(training)
    best = _look(training, view, looking) if training.fabric.is_global_zero else False
    return training.fabric.broadcast(best) if is_sharded(training.fabric) else best


def _look(training: Training, view: Training, looking: list[Observer]) -> bool:
    """`view`: the run as observers see it, with whole weights."""
    best = False
    view.objective.eval()
    with alone(), torch.no_grad(), training.fabric.autocast():  # the other ranks are on their way to the next step
        for observer in looking:
            seen = observer.observe(view)
            if seen:
                training.tell({"step": training.step, **seen})
                for sentence in sentences(read_metrics(training.metrics.path)):
                    training.warn(sentence)
            if SCORE in seen and (training.best is None or seen[SCORE] > training.best):
                training.best, best = seen[SCORE], True
    view.objective.train()
    return best
