"""How every figure of a report looks, and how it becomes part of a page or a file: colours, markers, SVG, PDF, PNG."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from downstream import lettering

# Okabe and Ito's palette, told apart under all common colour-vision deficiencies, and by marker in black and white
BASELINE_COLOUR = "#767676"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
HANDLE, LEGEND_SIZE = 0.65, 9.5  # of a legend: inches of a line with its margins, and points of the text beside it
ROW = 0.2  # inches of a row of a legend
TITLE_SIZE, TICK_SIZE = 10.0, 10.5  # points of a small panel's title, and of the numbers along an axis
SPREAD = 0.55  # of the octaves between two amounts: what the arms at one of them are spread over at most
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
    "pdf.fonttype": 42,  # TrueType: text stays text, as journals ask
    "text.parse_math": False,  # a name with two dollar signs is a name
}


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, the same in every figure of a report."""

    colour: str
    marker: str
    line: str = "-"


def looks(baselines: Iterable[str], others: Iterable[str]) -> dict[str, Look]:
    """{name: look}; baselines are grey, after six arms colours come again with other markers and dashes."""
    chosen = {name: Look(BASELINE_COLOUR, "x") for name in baselines}
    for i, name in enumerate(dict.fromkeys(others)):
        dashes = ("-", "--", ":")[i // len(COLOURS) % 3]
        chosen.setdefault(
            name, Look(COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)], dashes)
        )
    return chosen


def amounts_axis(axes: Axes, amounts: Iterable[int], pad: float = 0.4) -> None:
    """An x axis of labelled patients: base 2, a tick for each amount, labelled while there is room."""
    found = sorted({float(n) for n in amounts})
    axes.set_xscale("log", base=2)
    axes.set_xlim(found[0] / 2**pad, found[-1] * 2**pad)
    amounts_ticks(axes.xaxis, found)


def amounts_ticks(axis: Axis, amounts: Iterable[float]) -> None:
    """A tick for each amount of labels on an axis whose scale and limits are set, labelled while there is room."""
    found = sorted(set(amounts))
    axis.set_major_locator(FixedLocator(found))
    axis.set_minor_locator(NullLocator())
    along = isinstance(axis, XAxis)
    inches = _inches(axis.axes)[0 if along else 1]
    ends = axis.get_view_interval()
    scale = inches / math.log2(ends[1] / ends[0])
    places = [math.log2(n) * scale for n in found]
    sizes = [(lettering.width(f"{n:g}", TICK_SIZE) if along else TICK_SIZE / 72) + 0.08 for n in found]
    kept = set(_apart(places, sizes))
    axis.set_ticks(found, [f"{n:g}" if i in kept else "" for i, n in enumerate(found)])


def _apart(places: Sequence[float], sizes: Sequence[float]) -> list[int]:
    """Which of some labels, in order, stand without touching one another: the last, and as many before as fit."""
    kept = [len(places) - 1]
    for i in reversed(range(len(places) - 1)):
        if places[kept[-1]] - places[i] >= (sizes[kept[-1]] + sizes[i]) / 2:
            kept.append(i)
    return kept


def shifts(count: int, amounts: Iterable[float]) -> list[float]:
    """Octaves by which each of `count` arms is moved at every amount, so that their bars do not hide one another."""
    found = sorted(set(amounts))
    gap = min((math.log2(b / a) for a, b in itertools.pairwise(found)), default=1.0)
    step = min(0.075, SPREAD * gap / max(count, 1))
    return [(i - (count - 1) / 2) * step for i in range(count)]


def label_beside(axes: Axes, text: str) -> None:
    """The label of a y axis, broken where it is longer than the axis."""
    axes.set_ylabel(lettering.broken(text, _inches(axes)[1], TICK_SIZE))


def _inches(axes: Axes) -> tuple[float, float]:
    """Width and height of a panel before its layout, which makes it a little larger."""
    figure, box = axes.figure, axes.get_position()
    assert isinstance(figure, Figure), "no figure of a report has parts"
    return box.width * figure.get_figwidth(), box.height * figure.get_figheight()


def hide_unused(axes: Any, used: int) -> None:
    """Hide panels of a grid (rows, columns) from number `used` on; what stands above one gets its numbers itself."""
    columns = axes.shape[1]
    for place, panel in enumerate(axes.flat):
        if place >= used:
            panel.set_visible(False)
        elif place + columns >= used:
            panel.tick_params(labelbottom=True)


def legend(figure: Figure, *panels: Axes) -> None:
    """One legend above all panels, where it hides nothing, in as many columns as the figure has room for."""
    unique = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    if unique:
        inches = figure.get_figwidth()
        figure.legend(
            unique.values(),
            _legend_labels(list(unique), inches),
            loc="outside upper left",
            ncols=_legend_columns(list(unique), inches),
            frameon=False,
            fontsize=LEGEND_SIZE,
        )


def legend_height(labels: Iterable[str], inches: float) -> float:
    """Inches that a legend of these labels takes above the panels of a figure `inches` wide."""
    unique = list(dict.fromkeys(labels))
    columns = _legend_columns(unique, inches)
    lines = [label.count("\n") + 1 for label in _legend_labels(unique, inches)]
    per_column = -(-len(lines) // columns)
    return ROW * max((sum(lines[i : i + per_column]) for i in range(0, len(lines), per_column)), default=0)


def _legend_labels(labels: Sequence[str], inches: float) -> list[str]:
    return [lettering.broken(label, inches - HANDLE, LEGEND_SIZE) for label in labels]


def _legend_columns(labels: Sequence[str], inches: float) -> int:
    column = HANDLE + max((lettering.width(label, LEGEND_SIZE) for label in labels), default=0.0)
    return min(max(1, int(inches / column)), max(len(labels), 1))


def save(figure: Figure, path: Path, dpi: int = 160) -> Path:
    """Write a PNG."""
    with rc_context(STYLE):
        figure.savefig(path, dpi=dpi, facecolor="white")
    return path


def pdf(figure: Figure) -> bytes:
    """The figure as a PDF without a date: equal figures give equal bytes."""
    target = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(target, format="pdf", facecolor="white", metadata={"CreationDate": None})
    return target.getvalue()


def svg(figure: Figure, name: str = "figure") -> str:
    """The figure as an SVG file: reproducible, text left as text; `name` keeps ids of several figures apart.

    Its layout is fixed from then on, which spares the next drawing of it most of its time.
    """
    target = io.StringIO()
    with rc_context(STYLE | {"svg.hashsalt": f"ssl3d {name}"}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    figure.set_layout_engine("none")
    return target.getvalue()


def inline(source: str, width: float, alt: str) -> str:
    """An SVG file as an element of a page: its ink that of the page, `width` in inches its largest.

    `alt` is read to those who cannot see it.
    """
    text = re.sub(r"<metadata>.*?</metadata>", "", source, flags=re.DOTALL)
    text = re.sub(r' (xmlns|xmlns:xlink|width|height)="[^"]*"', "", text[text.index("<svg") :], count=4)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # figure_1, axes_1, ...: a page has an id once
    text = re.sub(r"\n +", "\n", text).strip()
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}" style="max-width:{110 * width:.0f}px"', 1)
    text = text.replace(INK, "currentColor").replace(GRID, "var(--line)")
    for i, colour in enumerate((BASELINE_COLOUR, *COLOURS)):
        text = text.replace(colour.lower(), f"var(--c{i})")  # page.STYLE has brighter ones for dark screens
    return text
