"""Learning speed: score against optimiser steps, and the steps to 95 % of what scratch ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from downstream import page, sentences
from downstream.blocks import Block, Chart, Section, Table
from downstream.comparison import METRICS, Point, compare
from downstream.crossing import BELOW, BEYOND, Place
from downstream.drawing import BASELINE_COLOUR, STYLE, TITLE_SIZE, hide_unused, legend, legend_height
from downstream.efficiency import SHARE, Reached, learning_speed
from downstream.sections.numbers import plain_point
from downstream.sections.view import View, files, grouped, metric_axis, reached_words

COLUMNS = 3  # panels side by side
FEW = 0.12  # of a training: scored steps further apart than that bend the result (docs/statistics.md)
ALONE = 5.2  # inches of a figure of one panel, so that a legend fits above it
Curves = Mapping[int, Sequence[Point]]  # {step: points}


def speed(view: View) -> Section | None:
    """A chart, sentences and a table for each measure that was scored at several steps; None without one."""
    blocks: list[Block] = []
    found: list[Reached] = []
    curves: list[dict[str, Any]] = []
    for measure in view.measures:
        metric = view.leading(measure)
        rows = view.rows[(view.rows["schedule"] == measure) & (view.rows["metric"] == metric)]
        if rows["step"].nunique() < 2 or not METRICS[metric].higher_is_better:
            continue
        steps = by_step(view, rows)
        own = [r for r in learning_speed(rows, view.evaluation.baselines, metric) if r.replicates]
        found += own
        curves += [{"step": step, **plain_point(p)} for step, points in steps.items() for p in points]
        blocks += [
            page.heading(view.title(measure)),
            *_charts(view, measure, steps, own),
            page.listing(sentence(view, group) for group in grouped(own).values()),
            _table(view, measure, own),
        ]
    if not blocks:
        return None
    intro = (
        f"Each training was scored on the way too. Reached: the first step at which an arm has {100 * SHARE:.0f} % of "
        "the score that the arm without pre-training ends with, of the same labelled patients and seeds; its schedule "
        "is that of the whole training, so a training planned shorter might learn faster. Test patients chose nothing."
    )
    intro += _sparse(found)
    data = {"learning_speed": [_plain(r) for r in found], "learning_curves": curves}
    return Section("Learning speed", [page.paragraph(intro, "soft"), *blocks], data)


def _sparse(found: Sequence[Reached]) -> str:
    """What straight lines between few scored steps do; nothing where they are many."""
    widest = max((r.widest / r.last for r in found), default=0.0)
    if widest <= FEW:
        return ""
    return (
        " Between two scored steps the score is taken as a straight line, while scores rise in a curve: with steps as "
        f"far apart as here, {100 * widest:.0f} % of a training, the numbers are too large, most for the slower arms, "
        "and their intervals do not hold that. Score at ten steps or more (score_at) to compare speeds."
    )


def by_step(view: View, rows: pd.DataFrame) -> Curves:
    """{step: the points there} of one measure's rows of one metric."""
    steps = sorted(int(step) for step in rows["step"].unique())
    return {step: compare(rows[rows["step"] == step], view.evaluation.baselines) for step in steps}


def place(at: Place | None) -> str:
    """ "120", "more than 200" or "at most 25": steps; empty where there is no place."""
    if at is None or at.x != at.x:
        return ""
    words = {BEYOND: "more than ", BELOW: "at most "}.get(at.side, "")
    return f"{words}{at.x:.0f}"


def sentence(view: View, group: Sequence[Reached]) -> str:
    """One arm's speed over all amounts of labels."""
    parts = [
        f"{sentences.patients_in_words(r.n_labelled)}: {place(r.estimate)} steps"
        + (f" (95 % interval {reached_words(place(r.low), place(r.high))})" if r.low and r.high else "")
        for r in group
        if place(r.estimate)
    ]
    reasons = sorted({r.reason for r in group if r.reason})
    name = view.name(group[0].measure, group[0].arm)
    return f"{name}, {'; '.join(parts)}" + (f"; no interval ({sentences.join(reasons)})." if reasons else ".")


def _table(view: View, measure: str, found: Sequence[Reached]) -> Table:
    head = ("labelled", "arm", "steps", "95 % interval")
    rows = [
        (r.n_labelled, view.name(measure, r.arm), place(r.estimate), reached_words(place(r.low), place(r.high)))
        for r in found
    ]
    last = max((r.last for r in found), default=0)
    caption = (
        f"Steps to {100 * SHARE:.0f} % of the final score of {view.baseline(measure)}; scored up to {last:g} steps."
    )
    return Table(
        files("learning_speed", measure), head, rows, caption, f"{view.title(measure)}: steps", (0, 2, 3), folded=True
    )


def _charts(view: View, measure: str, steps: Curves, found: Sequence[Reached]) -> list[Chart]:
    """One a network."""
    networks = view.networks(view.arms([p for points in steps.values() for p in points]))
    return [
        _chart(
            view,
            measure,
            network,
            {step: [p for p in points if p.arm in arms] for step, points in steps.items()},
            [r for r in found if r.arm in arms],
        )
        for network, arms in networks.items()
    ]


def _chart(view: View, measure: str, network: str, steps: Curves, found: Sequence[Reached]) -> Chart:
    title = view.title(measure, network)
    ends = "; ".join(sentence(view, group) for group in grouped(found).values())
    alt = f"{title}: score against steps, a panel for each amount of labels. {ends}"
    shown = [p for points in steps.values() for p in points]
    caption = f"{title}: mean {METRICS[view.leading(measure)].name} on the test patients against optimiser steps."
    caption += " Bands: 95 % intervals of each point." if any(p.score.low is not None for p in shown) else ""
    if any(p.is_baseline for p in shown):
        caption += f" Dashed grey line: {100 * SHARE:.0f} % of the final score of {view.baseline(measure)}."
    return Chart(files("learning_speed", measure, network), _draw(view, measure, steps), alt, caption)


def _draw(view: View, measure: str, steps: Curves) -> Figure:
    amounts = sorted({p.n_labelled for points in steps.values() for p in points})
    columns = min(COLUMNS, len(amounts))
    lines = -(-len(amounts) // columns)
    arms = view.arms([p for points in steps.values() for p in points])
    with rc_context(STYLE):
        wide = max(0.7 + 2.85 * columns, ALONE)
        tall = 2.6 * lines + 0.4 + legend_height([view.name(measure, arm) for arm in arms], wide)
        figure = Figure(figsize=(wide, tall), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for axis, n in zip(axes.flat, amounts):
            for arm in arms:
                own = [(step, p) for step, points in steps.items() for p in points if (p.arm, p.n_labelled) == (arm, n)]
                _line(axis, own, view, measure)
            finals = [p.score.mean for p in list(steps.values())[-1] if p.is_baseline and p.n_labelled == n]
            for final in finals:
                axis.axhline(SHARE * final, color=BASELINE_COLOUR, linewidth=1, linestyle="--")
            axis.set_title(sentences.patients_in_words(n), fontsize=TITLE_SIZE)
        hide_unused(axes, len(amounts))
        figure.supylabel(metric_axis(view.leading(measure)), fontsize=10.5)
        figure.supxlabel("optimiser steps", fontsize=10.5)
        legend(figure, axes[0, 0])
    return figure


def _line(axis: Any, own: Sequence[tuple[int, Point]], view: View, measure: str) -> None:
    if not own:
        return
    look = view.looks[own[0][1].arm]
    x = [step for step, _ in own]
    axis.plot(x, [p.score.mean for _, p in own], color=look.colour, marker=look.marker, linestyle=look.line,
              markersize=4, linewidth=1.5, label=view.name(measure, own[0][1].arm))  # fmt: skip
    known = [(step, p.score.low, p.score.high) for step, p in own if p.score.low is not None]
    if known:
        at, low, high = zip(*known)
        axis.fill_between(at, low, high, color=look.colour, alpha=0.12, linewidth=0)


def _plain(found: Reached) -> dict[str, Any]:
    return dataclasses.asdict(found) | {"steps": place(found.estimate)}
