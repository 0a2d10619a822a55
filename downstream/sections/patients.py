"""Paired differences patient by patient: whether a mean gain is everybody's, or a few patients'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from downstream import sentences
from downstream.blocks import Chart, Section, Table
from downstream.comparison import METRICS, Point
from downstream.drawing import BASELINE_COLOUR, STYLE, TICK_SIZE, TITLE_SIZE, hide_unused
from downstream.lettering import broken, height
from downstream.sections.view import View, files, prepared
from downstream.statistics import complete_block
from downstream.tables import last_step, scores_by_arm

COLUMNS = 3  # panels side by side
PANEL, PLOT = 2.85, 2.3  # inches of a panel's width, and of its height without the title
WHOLE_SET = ("auroc", "ap", "f1", "ece", "correlation")  # a pseudo-value of a patient is no score of his


def patients(view: View) -> Section | None:
    """A chart and a row of the table for each measure and arm, at the middle amount of labels; None without any."""
    rows = last_step(prepared(view))
    charts, lines, data = [], [], []
    for measure in view.measures:
        metric, n = view.leading(measure), view.middle(measure)
        if metric in WHOLE_SET:
            continue
        points = [p for p in view.select(measure) if p.n_labelled == n and p.difference is not None]
        found = {p.arm: differences(rows, p) for p in points}
        found = {arm: values for arm, values in found.items() if not values.empty}
        if not found:
            continue
        charts.append(_chart(view, measure, [p for p in points if p.arm in found], found))
        for arm, values in found.items():
            lines.append(_row(view, measure, n, arm, values, metric))
            data.append(
                {"measure": measure, "n_labelled": n, "arm": arm, "metric": metric, "differences": dict(values)}
            )
    if not charts:
        return None
    head = ("measure", "labelled", "arm", "better for", "worse for", "lowest", "median", "highest")
    pooled = any(row["arm"] in view.members for row in data)
    caption = f"Paired differences of patients, each the mean over {_over(pooled)}."
    table = Table("patients", head, lines, caption, numbers=(1, 3, 4, 5, 6, 7))
    return Section("Patient by patient", [*charts, table], {"patients": data})


def differences(rows: pd.DataFrame, point: Point) -> pd.Series:
    """{patient: mean difference to the baseline over replicates and runs}, rising, of a point's rows (prepare)."""
    own = rows[(rows["schedule"] == point.measure) & (rows["metric"] == point.metric)]
    scores = scores_by_arm(own[own["n_labelled"] == point.n_labelled])
    paired = scores[point.n_labelled, point.arm].minus(scores[point.n_labelled, point.baseline]).patients()
    means = [complete_block(table).mean(axis=0) for table in paired]
    return pd.concat(means, axis=1, join="inner").mean(axis=1).sort_values(kind="stable")


def _chart(view: View, measure: str, points: list[Point], found: dict[str, pd.Series]) -> Chart:
    metric, n = METRICS[points[0].metric], points[0].n_labelled
    what = f"{metric.name} minus {view.baseline(measure).removeprefix('a ')}"
    alt = f"{view.title(measure)}, {sentences.patients_in_words(n)}: {what}, patient by patient. " + "; ".join(
        f"{arm}: higher in {int((values > 0).sum())} of {len(values)}" for arm, values in found.items()
    )
    caption = (
        f"{view.title(measure)} on {sentences.patients_in_words(n)}. A dot a test patient, sorted; each the mean over "
        f"{_over(bool(set(found) & set(view.members)))}. Dashed line: the mean of all."
    )
    if any(p.difference is not None and p.difference.low is not None for p in points):
        caption += " Band: its 95 % interval, which also holds the luck of seeds and subsets that dots do not show."
    return Chart(files("patients", measure), _draw(view, points, found, what), alt, caption)


def _over(pooled: bool) -> str:
    return f"training seeds{' and pre-training runs' if pooled else ''}"


def _draw(view: View, points: list[Point], found: dict[str, pd.Series], what: str) -> Figure:
    columns = min(COLUMNS, len(points))
    count = -(-len(points) // columns)
    titles = [broken(point.arm, PANEL - 0.3, TITLE_SIZE, bold=True) for point in points]
    tall = count * (PLOT + height(titles, TITLE_SIZE)) + 0.3
    with rc_context(STYLE):
        figure = Figure(figsize=(0.7 + PANEL * columns, tall), layout="constrained")
        axes = figure.subplots(count, columns, squeeze=False, sharey=True)
        for axis, point, name in zip(axes.flat, points, titles):
            values, look = found[point.arm], view.looks[point.arm]
            place = np.arange(1, len(values) + 1)
            axis.axhline(0, color=BASELINE_COLOUR, linewidth=1.2)
            axis.vlines(place, 0, values.to_numpy(), color=look.colour, linewidth=0.8, alpha=0.5)
            axis.plot(place, values.to_numpy(), linestyle="", marker="o", markersize=3.6, color=look.colour)
            estimate = point.difference
            if estimate is not None:
                axis.axhline(estimate.mean, color=look.colour, linewidth=1.3, linestyle="--")
                if estimate.low is not None and estimate.high is not None:
                    axis.axhspan(estimate.low, estimate.high, color=look.colour, alpha=0.14, linewidth=0)
            axis.set_title(name, fontsize=TITLE_SIZE)
            axis.set_xticks([1, len(values)] if len(values) > 1 else [1])
        hide_unused(axes, len(points))
        figure.supylabel(broken(what, tall - 0.6, TICK_SIZE), fontsize=TICK_SIZE)
        figure.supxlabel("test patients, sorted", fontsize=10.5)
    return figure


def _row(view: View, measure: str, n: int, arm: str, values: pd.Series, metric: str) -> tuple[Any, ...]:
    about = METRICS[metric]
    good = values if about.higher_is_better else -values
    shown = [
        sentences.number(float(v), about.decimals + 1, True) for v in (values.min(), values.median(), values.max())
    ]
    return (view.title(measure), n, arm, int((good > 0).sum()), int((good < 0).sum()), *shown)
