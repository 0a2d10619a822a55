"""The label-efficiency curve: score against labelled patients, and below it the paired difference with its interval."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from downstream.comparison import BASELINES, MEASURES, METRICS, Point
from downstream.sentences import patients_in_words

# Okabe and Ito's palette, told apart under all common colour-vision deficiencies, and by marker in black and white
BASELINE_COLOUR = "#767676"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, GRID = "#1b1d21", "#dfe2e7"  # replaced by the page's own colours in svg()
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "svg.fonttype": "none",
}
SPREAD = 0.07  # octaves between neighbouring arms, so that their bars do not hide one another


def styles(points: Sequence[Point]) -> dict[str, tuple[str, str]]:
    """{arm: (colour, marker)}, the same in every figure of a report; baselines are grey."""
    baselines = {p.arm for p in points if p.is_baseline}
    arms = sorted({p.arm for p in points} - baselines)
    chosen = dict.fromkeys(baselines, (BASELINE_COLOUR, "x"))
    return chosen | {arm: (COLOURS[i % 6], MARKERS[(i + i // 6) % 6]) for i, arm in enumerate(arms)}


def draw(points: Sequence[Point], metric: str = "dice") -> Figure:
    """A column a measure: scores above, differences to the baseline below. Raises ValueError without a point."""
    points = [p for p in points if p.metric == metric]
    if not points:
        raise ValueError(f"there is no '{metric}' to draw")
    measures = [m for m in MEASURES if any(p.measure == m for p in points)]
    measures += sorted({p.measure for p in points} - set(measures))
    chosen = styles(points)
    with rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 4.6 * len(measures), 6.4), layout="constrained")
        axes = figure.subplots(2, len(measures), squeeze=False, sharex="col", height_ratios=(3, 2))
        for column, measure in enumerate(measures):
            own = [p for p in points if p.measure == measure]
            _scores(axes[0, column], own, chosen, metric, measure)
            _differences(axes[1, column], own, chosen, metric, measure)
    return figure


def _scores(axes: Axes, points: Sequence[Point], chosen: dict[str, tuple[str, str]], metric: str, measure: str) -> None:
    arms = _arms(points)
    baselines = {p.arm for p in points if p.is_baseline}
    for i, arm in enumerate(arms):
        label = BASELINES.get(measure, arm) if baselines == {arm} else arm
        _line(axes, [p for p in points if p.arm == arm], chosen[arm], _shift(i, len(arms)), False, label)
    axes.set_title(MEASURES.get(measure, measure))
    axes.set_ylabel(METRICS[metric].unit if not METRICS[metric].higher_is_better else METRICS[metric].name)
    axes.legend(frameon=False, loc="best", fontsize=9.5)
    _ticks(axes, points)


def _differences(
    axes: Axes, points: Sequence[Point], chosen: dict[str, tuple[str, str]], metric: str, measure: str
) -> None:
    axes.axhline(0, color=BASELINE_COLOUR, linewidth=1.2)
    arms = _arms(points)
    for i, arm in enumerate(arms):
        own = [p for p in points if p.arm == arm and p.difference is not None]
        _line(axes, own, chosen[arm], _shift(i, len(arms)), True, arm)
    axes.set_ylabel(f"{METRICS[metric].name} minus {BASELINES.get(measure, 'baseline').removeprefix('a ')}")
    axes.set_xlabel("labelled patients")
    _ticks(axes, points)


def _line(
    axes: Axes, points: Sequence[Point], style: tuple[str, str], shift: float, difference: bool, label: str
) -> None:
    colour, marker = style
    estimates = [p.difference if difference else p.score for p in points]
    x = [p.n_labelled * 2.0**shift for p in points]
    y = [e.mean for e in estimates if e is not None]
    axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.6, label=label)
    for at, found in zip(x, estimates):
        if found is not None and found.low is not None and found.high is not None:
            axes.plot([at, at], [found.low, found.high], color=colour, linewidth=1.6, alpha=0.85)
            for end in (found.low, found.high):
                axes.plot([at / 2**0.03, at * 2**0.03], [end, end], color=colour, linewidth=1.6, alpha=0.85)


def _arms(points: Sequence[Point]) -> list[str]:
    """Baselines first, then by name."""
    baselines = {p.arm for p in points if p.is_baseline}
    return sorted({p.arm for p in points}, key=lambda arm: (arm not in baselines, arm))


def _shift(index: int, count: int) -> float:
    return (index - (count - 1) / 2) * SPREAD


def _ticks(axes: Axes, points: Sequence[Point]) -> None:
    amounts = sorted({p.n_labelled for p in points})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([float(n) for n in amounts]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([float(n) for n in amounts], [str(n) for n in amounts])
    axes.set_xlim(amounts[0] / 2**0.4, amounts[-1] * 2**0.4)


def save(figure: Figure, path: Path, dpi: int = 160) -> Path:
    """Write a PNG."""
    with rc_context(STYLE):
        figure.savefig(path, dpi=dpi, facecolor="white")
    return path


def svg(figure: Figure) -> str:
    """The figure as an <svg> element of a page: reproducible, text left as text, its ink that of the page."""
    target = io.StringIO()
    with rc_context(STYLE | {"svg.hashsalt": "ssl3d"}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", target.getvalue(), flags=re.DOTALL)
    text = re.sub(r' (xmlns|xmlns:xlink|width|height)="[^"]*"', "", text[text.index("<svg") :], count=4)
    text = text.replace("<svg", f'<svg style="max-width:{110 * figure.get_figwidth():.0f}px"', 1)
    text = text.replace(INK, "currentColor").replace(GRID, "var(--line)")
    for i, colour in enumerate((BASELINE_COLOUR, *COLOURS)):
        text = text.replace(colour.lower(), f"var(--c{i})")  # page.STYLE has brighter ones for dark screens
    return text


def describe(points: Sequence[Point], metric: str = "dice") -> str:
    """Alternative text of the figure for readers who cannot see it."""
    own = [p for p in points if p.metric == metric]
    ends = [
        f"{MEASURES.get(p.measure, p.measure)}, {p.arm}, {patients_in_words(p.n_labelled)}: {p.score.mean:.3f}"
        for p in own
    ]
    return f"{METRICS[metric].name} against labelled patients. " + "; ".join(ends)
