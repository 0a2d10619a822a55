"""Label-efficiency curves: score against labelled patients, and beside it the paired difference with its interval."""

from __future__ import annotations

from downstream import curve
from downstream.blocks import Chart, Section
from downstream.comparison import METRICS
from downstream.sections.view import View, files

CAPTION = (
    "Left: mean {metric} on the test patients. Right: the same minus {baseline}, paired by patient, labelled subset "
    "and seed."
)
BARS = (
    " Bars: 95 % intervals, each point by itself. Judge differences by the right panel: bars on the left may overlap "
    "although the paired difference is clear."
)
BARE = " A point without a bar has no interval."
RUNS = " Thin lines: single pre-training runs; thick lines: the mean of a method over its runs."


def curves(view: View) -> Section:
    """A chart a measure."""
    charts = []
    for measure in view.measures:
        points = view.select(measure)
        metric = METRICS[points[0].metric].name
        caption = CAPTION.format(metric=metric, baseline=view.baseline(measure))
        bars = [e.low is not None for p in points for e in (p.score, p.difference) if e is not None]
        caption += (BARS if any(bars) else "") + ("" if all(bars) else BARE)
        caption += RUNS if curve.has_thin_lines(view, measure) else ""
        name = files("curve", measure)
        charts.append(Chart(name, curve.draw(view, [measure]), curve.describe(view, measure), caption))
    return Section("Curves", charts)
