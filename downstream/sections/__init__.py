"""The sections of an evaluation's report, one idea a file: from a View to blocks and plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from downstream.blocks import Section
from downstream.sections.cases import cases
from downstream.sections.curves import curves
from downstream.sections.design import design, guard, limits
from downstream.sections.duels import duels
from downstream.sections.head import head, title
from downstream.sections.labels import labels
from downstream.sections.numbers import numbers
from downstream.sections.patients import patients
from downstream.sections.provenance import provenance
from downstream.sections.several import of_several, title_of_several
from downstream.sections.significance import significance
from downstream.sections.speed import speed
from downstream.sections.transfer import targets
from downstream.sections.tuning import tuning
from downstream.sections.view import View
from downstream.sections.volumes import volumes
from downstream.sections.words import words

__all__ = ["of_evaluation", "of_several", "title", "title_of_several"]


def of_evaluation(view: View) -> Sequence[Section]:
    """All sections of one evaluation that have something to say, in the order of the page."""
    parts: Sequence[Callable[[View], Section | None]] = (
        head, curves, words, labels, speed, patients, targets, volumes, numbers, significance, duels, tuning, cases,
        design, limits, guard, provenance,
    )  # fmt: skip
    return [section for part in parts if (section := part(view)) is not None]
