"""Who gains where: modality and target (rows) x amount of labels (columns), a panel an arm; the SegBook view.

After the layout of the transfer study of SegBook (Ye et al., arXiv 2411.14525): modality x target x data-set size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from downstream import page, sentences
from downstream.blocks import Chart, Section, Table
from downstream.comparison import METRICS, Point, compare
from downstream.drawing import COLOURS, INK, STYLE, TICK_SIZE, TITLE_SIZE, hide_unused
from downstream.lettering import broken, height, width
from downstream.results import MEAN_FOREGROUND
from downstream.sections.numbers import between
from downstream.sections.view import MARKS, View, files
from downstream.tables import last_step

BETTER, WORSE = COLOURS[0], COLOURS[1]
STRONGEST = 0.75  # opacity of the largest difference: text stays legible on it, the page light or dark
COLUMNS, WIDEST = 4, 11.2  # panels side by side at most, and inches of the figure, where a panel is not wider itself
CELL, ROW = 0.62, 0.34  # inches of a cell
NARROWEST, NAMES = 2.0, 3.0  # inches: a panel, so that its title has room with one amount of labels; names of targets


@dataclass(frozen=True)
class Target:
    """One row of the matrix."""

    modality: str
    dataset: str
    name: str

    def words(self, several: bool) -> str:
        return f"{self.modality} · {self.dataset} · {self.name}" if several else self.name


Cells = dict[tuple[str, int, Target], Point]  # {(arm, labelled patients, target): the compared point}


def transfer(views: Sequence[View]) -> Section:
    """The matrix over several data sets, a chart and a table a measure that trains or probes on all of them."""
    intro = (
        "Paired difference to the arm without pre-training, target by target. Intervals hold for each cell alone: "
        "among many cells some exclude zero by chance."
    )
    return _section("Transfer matrix", intro, views)


def targets(view: View) -> Section | None:
    """The same for the classes of one data set; None where there is but one."""
    found = [label for label in view.evaluation.results["label"].unique() if label and label != MEAN_FOREGROUND]
    dice = view.evaluation.results["metric"].eq("dice").any()
    intro = (
        "Paired difference to the arm without pre-training, class by class. Intervals hold for each cell alone: among "
        "many cells some exclude zero by chance."
    )
    return _section("Target by target", intro, [view]) if len(found) > 1 and dice else None


def _section(title: str, intro: str, views: Sequence[View]) -> Section:
    blocks: list[Chart | Table] = []
    data: list[dict[str, Any]] = []
    for measure in dict.fromkeys(m for view in views for m in view.measures):
        own = [view for view in views if measure in view.measures]
        cells = {key: point for view in own for key, point in _cells(view, measure).items()}
        if cells:
            blocks += [_chart(own[0], measure, cells, len(views) > 1), _table(own[0], measure, cells)]
            data += [_plain(measure, key, point) for key, point in cells.items()]
    return Section(title, [page.paragraph(intro, "soft"), *blocks], {"transfer": data})


def _cells(view: View, measure: str) -> Cells:
    """Every compared point of a measure, class by class where it scores classes."""
    metric, evaluation = view.leading(measure), view.evaluation
    rows = last_step(view.rows[(view.rows["schedule"] == measure) & (view.rows["metric"] == metric)])
    whole = Target(evaluation.modality, evaluation.dataset, METRICS[metric].name)
    points = {whole: view.select(measure)}
    if metric == "dice":
        labels = [label for label in rows["label"].unique() if label != MEAN_FOREGROUND] or [MEAN_FOREGROUND]
        points = {
            replace_name(whole, label): compare(rows[rows["label"] == label], evaluation.baselines) for label in labels
        }
    return {(p.arm, p.n_labelled, target): p for target, own in points.items() for p in own if p.difference is not None}


def replace_name(target: Target, label: str) -> Target:
    """The target of one class."""
    return dataclasses.replace(target, name="all classes" if label == MEAN_FOREGROUND else label)


def _chart(view: View, measure: str, cells: Cells, several: bool) -> Chart:
    arms = list(dict.fromkeys(arm for arm, _, _ in cells))
    rows = list(dict.fromkeys(target for _, _, target in cells))
    best = max(cells.items(), key=lambda item: _gain(item[1]))
    alt = (
        f"{view.title(measure)}: {len(rows)} targets by {len(arms)} arms. Largest gain: {best[0][0]} on "
        f"{best[0][2].words(several)} at {sentences.patients_in_words(best[0][1])}, {_value(best[1])}. All numbers are "
        "in the table below."
    )
    caption = f"{view.title(measure)}: difference to {view.baseline(measure)} by target and labelled patients."
    caption += f" {_key(list(cells.values()))}"
    name = files("transfer" if several else "targets", measure)
    return Chart(name, _draw(cells, arms, rows, several), alt, caption)


def _key(points: Sequence[Point]) -> str:
    """What colours and bold numbers mean, those alone that are drawn."""
    gains = [_gain(point) for point in points]
    kinds = [
        word for word, drawn in (("blue: better", max(gains) > 0), ("orange: worse", min(gains) < 0)) if drawn
    ]  # fmt: skip
    colours = f"{', '.join(kinds).capitalize()}, the stronger the larger. " if kinds else ""
    sure = any(point.verdict() in MARKS for point in points)
    return colours + ("Bold: its interval excludes zero." if sure else "No interval of these excludes zero.")


def _draw(cells: Cells, arms: Sequence[str], rows: Sequence[Target], several: bool) -> Figure:
    amounts = sorted({n for _, n, _ in cells})
    largest = max(abs(_gain(point)) for point in cells.values()) or 1.0
    names = [broken(row.words(several), NAMES, TICK_SIZE) for row in rows]
    left = max(width(line, TICK_SIZE) for name in names for line in name.split("\n")) + 0.2
    panel = max(CELL * len(amounts) + 0.25, NARROWEST)
    columns = max(1, min(len(arms), COLUMNS, int((WIDEST - left) / panel)))
    lines = -(-len(arms) // columns)
    titles = [broken(arm, panel - 0.2, TITLE_SIZE, bold=True) for arm in arms]
    row = max(ROW, height(names, TICK_SIZE) + 0.06)
    with rc_context(STYLE | {"axes.grid": False}):
        size = (left + columns * panel, lines * (row * len(rows) + height(titles, TITLE_SIZE) + 0.6) + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
        for axis, arm, title in zip(axes.flat, arms, titles):
            axis.set_title(title, fontsize=TITLE_SIZE)
            for y, target in enumerate(rows):
                for x, n in enumerate(amounts):
                    if (arm, n, target) in cells:
                        _cell(axis, x, y, cells[arm, n, target], largest)
            axis.set(xlim=(-0.5, (panel - 0.25) / CELL - 0.5), ylim=(len(rows) - 0.5, -0.5))
            axis.set_xticks(range(len(amounts)), [str(n) for n in amounts])
            axis.set_yticks(range(len(rows)), names)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
        hide_unused(axes, len(arms))
        figure.supxlabel("labelled patients", fontsize=TICK_SIZE)
    return figure


def _cell(axes: Axes, x: int, y: int, point: Point, largest: float) -> None:
    gain = _gain(point)
    colour = BETTER if gain >= 0 else WORSE
    alpha = STRONGEST * min(abs(gain) / largest, 1.0)
    axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, facecolor=colour, alpha=alpha, linewidth=0))
    sure = point.verdict() in MARKS
    axes.text(
        x, y, _value(point), ha="center", va="center", fontsize=8.5, color=INK, fontweight="bold" if sure else None
    )


def _gain(point: Point) -> float:
    """The difference, positive where it is good."""
    if point.difference is None or point.difference.mean != point.difference.mean:
        return 0.0
    return point.difference.mean * (1 if METRICS[point.metric].higher_is_better else -1)


def _value(point: Point) -> str:
    digits = METRICS[point.metric].decimals
    return "" if point.difference is None else sentences.number(point.difference.mean, digits, signed=True)


def _table(view: View, measure: str, cells: Cells) -> Table:
    head = ("modality", "data set", "target", "labelled", "arm", "difference", "95 % interval", "verdict")
    rows = []
    for (arm, n, target), point in cells.items():
        if point.difference is not None:
            digits = max(
                METRICS[point.metric].decimals + 1, sentences.decimals_for(point.difference, METRICS[point.metric])
            )
            difference = sentences.number(point.difference.mean, digits, signed=True)
            interval = between(point.difference, digits)
            rows.append((*dataclasses.astuple(target), n, arm, difference, interval, point.verdict()))
    title = f"{view.title(measure)}, target by target"
    return Table(files("transfer", measure, "table"), head, rows, "", title, (3, 5, 6), (7,), MARKS, folded=True)


def _plain(measure: str, key: tuple[str, int, Target], point: Point) -> dict[str, Any]:
    arm, n, target = key
    estimate = None if point.difference is None else dataclasses.asdict(point.difference)
    return {"measure": measure, "arm": arm, "n_labelled": n, **dataclasses.asdict(target), "metric": point.metric,
            "difference": estimate, "verdict": point.verdict()}  # fmt: skip
