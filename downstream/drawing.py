"""How every figure of a report looks, and how it becomes part of a page or a file: colours, markers, SVG, PDF, PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

# Okabe and Ito's palette, told apart under all common colour-vision deficiencies, and by marker in black and white
BASELINE_COLOUR = "#767676"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
HANDLE, LETTER = 0.65, 0.075  # inches of a legend: a line with its margins, and a letter beside it
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
    axes.xaxis.set_major_locator(FixedLocator(found))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(found, [f"{n:g}" for n in found])
    axes.set_xlim(found[0] / 2**pad, found[-1] * 2**pad)


def legend(figure: Figure, *panels: Axes) -> None:
    """One legend above all panels, where it hides nothing, in as many columns as the figure has room for."""
    unique = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    if unique:
        column = HANDLE + LETTER * max(map(len, unique))
        columns = max(1, int(figure.get_figwidth() / column))
        figure.legend(
            unique.values(),
            unique.keys(),
            loc="outside upper left",
            ncols=min(len(unique), columns),
            frameon=False,
            fontsize=9.5,
        )


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
