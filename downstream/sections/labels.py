"""Labels saved: with how many labelled patients scratch reaches an arm's score, and by what factor that is more."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from downstream import page, sentences
from downstream.blocks import Block, Chart, Section, Table
from downstream.crossing import BELOW, BEYOND, Place
from downstream.drawing import (
    BASELINE_COLOUR,
    STYLE,
    Look,
    amounts_axis,
    amounts_ticks,
    label_beside,
    legend,
    legend_height,
    shifts,
)
from downstream.efficiency import Reached, labels_saved
from downstream.sections.view import View, files, grouped, reached_words

INTRO = (
    "The number of labelled patients with which the arm without pre-training reaches the score that the other arm has "
    "with fewer, on a curve that never falls with more labels, linear between measured amounts on a doubling scale. A "
    "factor of 2 means: half the labels. An end outside the measured range is said so, not extrapolated."
)


WIDTH = 6.6  # inches of a figure
BEFORE, AFTER = 0.3, 0.4  # octaves off the measured range at which a place outside it is drawn
TIP = 0.2  # octaves from there to the tip of its arrow


def labels(view: View) -> Section | None:
    """Sentences, a chart and a table a measure; None where no curve of the baseline was measured."""
    blocks: list[Block] = []
    found: list[Reached] = []
    for measure in view.measures:
        rows = view.rows
        own = [
            r
            for r in labels_saved(rows[rows["schedule"] == measure], view.evaluation.baselines, view.leading(measure))
            if r.replicates
        ]
        if own:
            found += own
            blocks += [
                page.heading(view.title(measure)),
                *_charts(view, measure, own),
                page.listing(sentence(view, group) for group in grouped(own).values()),
                _table(view, measure, own),
            ]
    if not found:
        return None
    return Section(
        "Labels saved", [page.paragraph(INTRO, "soft"), *blocks], {"labels_saved": [plain(r) for r in found]}
    )


def plain(found: Reached) -> dict[str, object]:
    """As plain types, with what is said of it."""
    return dataclasses.asdict(found) | {"needed": place(found, found.estimate), "factor": factor(found, found.estimate)}


def place(found: Reached, at: Place | None) -> str:
    """ "7.3", "more than 16" or "fewer than 1": labelled patients; empty where there is no place."""
    if at is None or at.x != at.x:
        return ""
    words = {BEYOND: "more than ", BELOW: "fewer than "}.get(at.side, "")
    return f"{words}{at.x:.3g}" if at.side else f"{at.x:.2g}" if at.x < 10 else f"{at.x:.0f}"


def factor(found: Reached, at: Place | None) -> str:
    """ "2.4", "above 4" or "below 0.25": how many times the labels; empty where there is no place."""
    if at is None or at.x != at.x:
        return ""
    words = {BEYOND: "above ", BELOW: "below "}.get(at.side, "")
    return f"{words}{found.factor(at):.2g}"


def sentence(view: View, group: Sequence[Reached]) -> str:
    """One arm's savings over all its amounts of labels."""
    baseline = view.baseline(group[0].measure)
    known = [r for r in group if place(r, r.estimate)]
    parts = [
        f"with {r.n_labelled} what {baseline} scores with {place(r, r.estimate)}"
        + (f" ({reached_words(place(r, r.low), place(r, r.high))})" if r.low and r.high else "")
        for r in known
    ]
    reasons = sorted({r.reason for r in group if r.reason})
    notes = [f"95 % intervals in brackets; {known[0].first:g} to {known[0].last:g} were measured"] if known else []
    notes += [f"no interval ({sentences.join(reasons)})"] if reasons else []
    if any(p and p.side for r in group for p in (r.estimate, r.low, r.high)):
        notes.append("what lies beyond the range is unknown")
    return f"{group[0].arm} scores {'; '.join(parts)} labelled patients. {'; '.join(notes).capitalize()}."


def _table(view: View, measure: str, found: Sequence[Reached]) -> Table:
    head = ("labelled", "arm", "baseline needs", "95 % interval", "factor", "95 % interval")
    rows = [
        (r.n_labelled, r.arm, place(r, r.estimate), reached_words(place(r, r.low), place(r, r.high)),
         factor(r, r.estimate), reached_words(factor(r, r.low), factor(r, r.high)))
        for r in found
    ]  # fmt: skip
    title = f"{view.title(measure)}: labels saved"
    reasons = sorted({r.reason for r in found if r.reason})
    caption = f"Measured with {found[0].first:g} to {found[0].last:g} labelled patients." + "".join(
        f" No interval: {reason}." for reason in reasons
    )
    return Table(files("labels_saved", measure), head, rows, caption, title, (0, 2, 3, 4, 5), folded=True)


def _charts(view: View, measure: str, found: Sequence[Reached]) -> list[Chart]:
    """One a network."""
    return [
        _chart(view, measure, network, [r for r in found if r.arm in arms])
        for network, arms in view.networks({r.arm: None for r in found}).items()
    ]


def _chart(view: View, measure: str, network: str, found: Sequence[Reached]) -> Chart:
    title = view.title(measure, network)
    said = " ".join(sentence(view, group) for group in grouped(found).values())
    alt = f"{title}, labels saved. {said}"
    caption = f"{title}. Above the diagonal: labels are saved, as many times as the grey lines say."
    ends = [p for r in found for p in _ends(r)]
    bars = [(_height(r.low), _height(r.high)) for r in found if r.low is not None and r.high is not None]
    caption += " Bars: 95 % intervals." if any(low != high for low, high in bars) else ""
    caption += _arrows("up", "beyond the largest", ends, BEYOND) + _arrows("down", "below the smallest", ends, BELOW)
    return Chart(files("labels_saved", measure, network), _draw(view, measure, found), alt, caption)


def _arrows(direction: str, where: str, ends: Sequence[Place], side: object) -> str:
    """What an arrow means, where one is drawn."""
    drawn = any(place.side == side for place in ends)
    return f" An arrow {direction}: {where} amount measured, how far is unknown." if drawn else ""


def _draw(view: View, measure: str, found: Sequence[Reached]) -> Figure:
    groups = grouped(found)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.3 + legend_height(groups, WIDTH)), layout="constrained")
        axes = figure.subplots()
        low, high = found[0].first, found[0].last
        amounts = [r.n_labelled for r in found]
        _factors(axes, amounts, low, high)
        for (arm, group), shift in zip(groups.items(), shifts(len(groups), amounts)):
            _line(axes, group, view.looks[arm], shift, arm)
        axes.set_yscale("log", base=2)
        amounts_axis(axes, amounts, 0.5)
        axes.set_ylim(low / 2 ** (BEFORE + 2 * TIP), high * 2 ** (AFTER + 3 * TIP))
        amounts_ticks(axes.yaxis, [float(p.n_labelled) for p in view.select(measure)])
        axes.minorticks_off()
        axes.set_xlabel("labelled patients of the arm")
        label_beside(axes, f"labelled patients {view.baseline(measure)} needs")
        legend(figure, axes)
    return figure


def _factors(axes: Axes, amounts: Sequence[int], low: float, high: float) -> None:
    """Diagonals: no label saved, half, three quarters, ...; named where they end within the panel."""
    for times in (0.5, 1, 2, 4, 8):
        ends = [low / 4, high * 4]
        width, line = (1.2, "-") if times == 1 else (0.7, ":")
        axes.plot(ends, [end * times for end in ends], color=BASELINE_COLOUR, linewidth=width, linestyle=line)
        top = high * 2 ** (AFTER + 2 * TIP)  # above every marker and arrow
        at = top / times / 2**0.08  # left of its line, not across it
        if min(amounts) / 2**0.2 < at < max(amounts) * 2**0.4:
            axes.text(at, top, f"×{times:g}", fontsize=8.5, ha="right", va="center", color=BASELINE_COLOUR)


def _line(axes: Axes, group: Sequence[Reached], look: Look, shift: float, arm: str) -> None:
    known = [r for r in group if r.estimate.x == r.estimate.x]
    x = [r.n_labelled * 2.0**shift for r in known]
    y = [_height(r.estimate) for r in known]
    axes.plot(x, y, color=look.colour, linestyle=look.line, linewidth=1.2, alpha=0.6)
    axes.plot(x, y, color=look.colour, marker=look.marker, linestyle="", markersize=5.5, label=arm)
    for at, r in zip(x, known):
        if r.low is not None and r.high is not None:
            axes.plot([at, at], [_height(r.low), _height(r.high)], color=look.colour, linewidth=1.5, alpha=0.85)
        sides = [p.side for p in _ends(r)]
        if BEYOND in sides:
            axes.plot([at], [r.last * 2 ** (AFTER + TIP)], marker="^", color=look.colour, markersize=5, linestyle="")
        if BELOW in sides:
            axes.plot([at], [r.first / 2 ** (BEFORE + TIP)], marker="v", color=look.colour, markersize=5, linestyle="")


def _ends(found: Reached) -> list[Place]:
    """An estimate and the ends of its interval, as far as there are any."""
    return [p for p in (found.estimate, found.low, found.high) if p is not None and p.x == p.x]


def _height(place: Place) -> float:
    """Where a place is drawn: outside the measured range a little off its end."""
    return place.x * 2 ** {BEYOND: AFTER, BELOW: -BEFORE}.get(place.side, 0.0)
