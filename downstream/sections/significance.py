"""Tests beside the intervals: of the crossed model and by permutation (unit and least p stated), Holm over families."""

from __future__ import annotations

from downstream import page, sentences
from downstream.blocks import Section, Table
from downstream.comparison import Point, Tests
from downstream.permutation import UNIT
from downstream.sections.view import View, files

INTRO = (
    "Intervals say how large a difference is; tests only whether it is surely none. Two null hypotheses: that the mean "
    "difference over runs, replicates and patients that could have been drawn is zero (crossed model; its p belongs to "
    "the interval), and that on these very test patients the start makes no difference at all (permutation; exact "
    f"given the settings, whatever the distribution). What is exchanged is the arms within a {UNIT}; with few of them "
    "no small p exists, however large the difference: the smallest possible is stated. Holm's correction holds within "
    "a table: all its arms and amounts of labels are one family."
)


def significance(view: View) -> Section | None:
    """A table a measure; None where nothing was tested."""
    tables = []
    for measure in view.measures:
        tested = [(p, p.tests) for p in view.select(measure) if p.tests is not None]
        if tested:
            rows = [_row(p, tests) for p, tests in tested]
            tables.append(_table(view, measure, rows, tested[0][1].family))
    return Section("Tests", [page.paragraph(INTRO, "soft"), *tables]) if tables else None


def _table(view: View, measure: str, rows: list[tuple[object, ...]], family: int) -> Table:
    head = ("labelled", "arm", "crossed model", "after Holm", "permutation", "smallest possible", "after Holm")
    caption = f"p-values, two-sided; Holm over {family} comparison{'' if family == 1 else 's'}."
    return Table(
        files("tests", measure), head, rows, caption, view.title(measure), numbers=(0, 2, 3, 4, 5, 6), folded=True
    )


def _row(point: Point, tests: Tests) -> tuple[object, ...]:
    exact = tests.permutation
    return (
        point.n_labelled,
        point.arm,
        sentences.p_cell(tests.p),
        sentences.p_cell(tests.p_holm),
        sentences.p_cell(exact.p if exact else None),
        sentences.p_cell(exact.smallest if exact else None),
        sentences.p_cell(tests.permutation_holm),
    )
