"""All scores and differences, a table a measure and metric; those of other metrics than the leading one folded away."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from downstream import sentences
from downstream.blocks import Section, Table
from downstream.comparison import METRICS, Point
from downstream.sections.view import MARKS, View, files
from downstream.statistics import Estimate

HEAD = ("labelled", "arm", "mean", "95 % interval", "difference", "95 % interval", "verdict", "runs", "seeds",
        "patients")  # fmt: skip


def numbers(view: View) -> Section:
    """The tables; as data every point with its sentence, single runs of pooled methods too."""
    tables = [
        _table(view, measure, metric)
        for measure in view.measures
        for metric in dict.fromkeys(p.metric for p in view.points if p.measure == measure)
    ]
    data = {"points": [plain_point(p) for p in view.points]}
    if view.members:
        single = {run for own in view.members.values() for run in own}
        data["runs"] = [plain_point(p) for p in view.runs if p.arm in single]
    return Section("Numbers", tables, data)


def plain_point(point: Point) -> dict[str, Any]:
    """A point as plain types, with what is said of it."""
    compared = point.difference is not None
    said = {"verdict": point.verdict(), "sentence": sentences.sentence(point)} if compared else {}
    return dataclasses.asdict(point) | said


def _table(view: View, measure: str, metric: str) -> Table:
    about = METRICS[metric]
    unit = " in mm" if about.unit.startswith("mm ") else ""
    better = "higher" if about.higher_is_better else "lower"
    points = view.select(measure, metric)
    notes = sorted({note for p in points for e in _estimates(p) if (note := sentences.loss(e))})
    reasons = sorted({e.reason for p in points for e in _estimates(p) if e.reason})
    return Table(
        files("scores", measure, metric),
        HEAD,
        [_row(view, p) for p in points],
        caption="; ".join([*notes, *(f"no interval: {reason}" for reason in reasons)]),
        title=f"{view.title(measure)}: {about.name}{unit}, {better} is better",
        numbers=(0, 2, 3, 4, 5, 7, 8, 9),
        tight=(6,),
        marks=MARKS,
        folded=metric != view.leading(measure),
    )


def _row(view: View, p: Point) -> Sequence[object]:
    metric = METRICS[p.metric]
    digits = metric.decimals + 1
    difference, around, verdict = "", "", ""
    if p.difference is not None:
        more = max(digits, sentences.decimals_for(p.difference, metric))
        difference = sentences.number(p.difference.mean, more, signed=True)
        around, verdict = between(p.difference, more), p.verdict()
    runs = p.score.runs or ("" if p.is_baseline else 1)
    return (p.n_labelled, view.name(p.measure, p.arm), sentences.number(p.score.mean, digits), between(p.score, digits),
            difference, around, verdict, runs, p.score.replicates, p.score.patients)  # fmt: skip


def between(found: Estimate, digits: int) -> str:
    """ "0.01 to 0.07", or "none"."""
    return "none" if found.low is None else sentences.interval(found, digits)


def _estimates(point: Point) -> list[Estimate]:
    return [e for e in (point.score, point.difference) if e is not None]
