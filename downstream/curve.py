"""The label-efficiency curve: score against labelled patients, and beside it the paired difference to the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from downstream.comparison import METRICS, Point
from downstream.drawing import (
    BASELINE_COLOUR,
    STYLE,
    Look,
    amounts_axis,
    label_beside,
    legend,
    legend_height,
    shifts,
)
from downstream.lettering import broken
from downstream.sections.view import View, metric_axis
from downstream.sentences import number, patients_in_words
from downstream.statistics import Estimate

WIDTH, ROW = 9.2, 3.6  # inches of the figure, and of a row of it


def draw(view: View, measures: Sequence[str]) -> Figure:
    """A row a measure and network: scores on the left, differences to the baseline on the right.

    Raises ValueError without a measure.
    """
    if not measures:
        raise ValueError("there is no measure to draw")
    rows = [
        (measure, network, [p for p in view.select(measure) if p.arm in arms])
        for measure in measures
        for network, arms in view.networks(view.arms(view.select(measure))).items()
    ]
    names = [view.name(measure, p.arm) for measure, _, points in rows for p in points]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, ROW * len(rows) + legend_height(names, WIDTH)), layout="constrained")
        axes = figure.subplots(len(rows), 2, squeeze=False)
        for row, (measure, network, points) in zip(axes, rows):
            row[0].set_title(broken(view.title(measure, network), WIDTH / 2 - 0.8, STYLE["axes.titlesize"], bold=True))
            _panel(row[0], view, points, False)
            _panel(row[1], view, points, True)
        legend(figure, *axes[:, 0])
    return figure


def _panel(axes: Axes, view: View, points: Sequence[Point], difference: bool) -> None:
    measure, metric = points[0].measure, points[0].metric
    arms = view.arms(points, False if difference else None)
    for arm, shift in zip(arms, shifts(len(arms), [p.n_labelled for p in points])):
        for run in view.members.get(arm, ()):
            _thin(axes, [p for p in view.runs if (p.arm, p.measure, p.metric) == (run, measure, metric)],
                  view.looks[arm], shift, difference)  # fmt: skip
        _line(axes, [p for p in points if p.arm == arm], view.looks[arm], shift, difference, view.name(measure, arm))
    if difference:
        axes.axhline(0, color=BASELINE_COLOUR, linewidth=1.2)
        label_beside(axes, f"{METRICS[metric].name} minus {view.baseline(measure).removeprefix('a ')}")
    else:
        label_beside(axes, metric_axis(metric))
    axes.set_xlabel("labelled patients")
    amounts_axis(axes, [p.n_labelled for p in points])


def _line(axes: Axes, points: Sequence[Point], look: Look, shift: float, difference: bool, label: str) -> None:
    shown = [(p, e) for p in points if (e := _estimate(p, difference)) is not None]
    x = [p.n_labelled * 2.0**shift for p, _ in shown]
    axes.plot(x, [e.mean for _, e in shown], color=look.colour, marker=look.marker, linestyle=look.line, markersize=5.5,
              linewidth=1.7, label=label)  # fmt: skip
    for at, (_, found) in zip(x, shown):
        if found.low is not None and found.high is not None:
            axes.plot([at, at], [found.low, found.high], color=look.colour, linewidth=1.5, alpha=0.85, marker="_",
                      markersize=5, markeredgewidth=1.5)  # fmt: skip


def _thin(axes: Axes, points: Sequence[Point], look: Look, shift: float, difference: bool) -> None:
    """One pre-training run of a method."""
    shown = [(p, e) for p in points if (e := _estimate(p, difference)) is not None]
    x = [p.n_labelled * 2.0**shift for p, _ in shown]
    axes.plot(x, [e.mean for _, e in shown], color=look.colour, linewidth=0.8, alpha=0.45)


def has_thin_lines(view: View, measure: str) -> bool:
    """Whether `draw` shows single pre-training runs: a run with one amount of labels has no line."""
    arms = {p.arm for p in view.select(measure)}
    runs = {run for arm, own in view.members.items() if arm in arms for run in own}
    found = [p.arm for p in view.runs if p.arm in runs and (p.measure, p.metric) == (measure, view.leading(measure))]
    return any(found.count(run) > 1 for run in runs)


def _estimate(point: Point, difference: bool) -> Estimate | None:
    return point.difference if difference else point.score


def describe(view: View, measure: str) -> str:
    """Alternative text of a measure's curve: every point with its difference."""
    points = view.select(measure)
    digits = METRICS[points[0].metric].decimals + 1
    parts = []
    for arm in view.arms(points):
        values = [
            f"{p.n_labelled}: {number(p.score.mean, digits)}"
            + (f" ({number(p.difference.mean, digits, signed=True)})" if p.difference else "")
            for p in points
            if p.arm == arm
        ]
        parts.append(f"{view.name(measure, arm)} at {', '.join(values)}")
    few = patients_in_words(min(p.n_labelled for p in points))
    return (
        f"{view.title(measure)}: {METRICS[points[0].metric].name} against labelled patients, from {few}; differences "
        f"to {view.baseline(measure)} in brackets. {'; '.join(parts)}."
    )
