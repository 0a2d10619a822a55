"""Weights of other programs: which format a file is, and a backbone filled from it. One format a file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import torch

from ssl3d.models.backbone import Backbone, BackboneSpec, build_backbone
from ssl3d.seeding import mix
from ssl3d.weights.fill import ImportReport, fill
from ssl3d.weights.read import read_weights
from ssl3d.weights.recognised import Choices


def import_weights(
    path: str | Path, choices: Choices | None = None, in_channels: int | None = None
) -> tuple[Backbone, ImportReport]:
    """The backbone that a weights file fills, in eval mode, and what became of every tensor.

    What the file does not hold is drawn from a fixed seed. `in_channels`: image channels, the file's unless said.
    Raises FileNotFoundError, ValueError: one sentence naming the file and the remedy.
    """
    choices = choices or Choices()
    found, digest = read_weights(Path(path), choices.trust, choices.inflate)
    kwargs = copy.deepcopy(found.spec.kwargs)
    kwargs |= {} if in_channels is None else {"in_channels": in_channels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(0, "imported weights"))
        try:
            backbone = build_backbone(BackboneSpec(found.spec.target, kwargs))
        except (ValueError, TypeError) as error:
            raise ValueError(f"'{path}' holds a {found.format} that cannot be built here: {error}") from None
    report = fill(backbone, found, f"'{path}'", minimum=choices.minimum, cast=choices.cast)
    report.digest = digest
    return backbone.eval(), report


def fill_from(
    backbone: Backbone,
    path: str | Path,
    part: Literal["all", "encoder"] = "all",
    choices: Choices | None = None,
    source: str | None = None,
) -> ImportReport:
    """Fill a backbone that a recipe has built. Raises as `import_weights`; `source`: what errors call the file."""
    choices = choices or Choices()
    input_size = getattr(backbone, "input_size", None)
    found, digest = read_weights(Path(path), choices.trust, choices.inflate, input_size)
    report = fill(backbone, found, source or f"'{path}'", part, choices.minimum, choices.cast)
    report.digest = digest
    return report
