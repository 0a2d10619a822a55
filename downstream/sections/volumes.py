"""Volume targets: whether probabilities mean what they say (calibration), and predictions against truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from downstream import sentences
from downstream.blocks import Chart, Section
from downstream.drawing import BASELINE_COLOUR, INK, STYLE, hide_unused
from downstream.lettering import broken, height
from downstream.sections.view import View, files
from downstream.tables import last_step
from downstream.volume_metrics import PREDICTION, TRUTH, bins_for, units

COLUMNS = 4  # panels side by side
PANEL, TITLE_SIZE = 2.15, 9.5  # inches of a panel with its numbers, points of its title


@dataclass(frozen=True)
class Outcomes:
    """Predictions of one arm over all trainings at one amount of labels.

    `predicted` (N,): the probability of the second of two classes, of the likeliest of more, or a number in the units
    of the target; `true` (N,): whether it was right (0 or 1), or the number. `seeds`: trainings.
    `patients`: behind each.
    """

    predicted: np.ndarray
    true: np.ndarray
    seeds: int
    patients: int


def volumes(view: View) -> Section | None:
    """A chart a measure of volume targets at the middle amount of labels; None without any."""
    charts, data = [], []
    for measure in view.measures:
        n = view.middle(measure)
        rows = view.evaluation.results
        rows = rows[(rows["schedule"] == measure) & (rows["split"] == "test") & (rows["n_labelled"] == n)]
        rows = rows[rows["metric"].isin([PREDICTION, TRUTH])]
        if rows.empty:
            continue
        found = {arm: outcomes(rows[rows["arm"] == arm]) for arm in view.pictured(rows["arm"])}
        regression = set(rows.loc[rows["metric"] == PREDICTION, "label"]) == {"value"}
        charts.append(_chart(view, measure, n, found, regression))
        data += [_plain(measure, n, arm, own, regression) for arm, own in found.items()]
    return Section("Volume targets", charts, {"volumes": data}) if charts else None


def outcomes(rows: pd.DataFrame) -> Outcomes:
    """All trainings of one arm's rows put together: a probability is judged each time it was given."""
    predicted, true = [], []
    trainings = list(last_step(rows).groupby(["subset", "seed"], sort=True))
    for _, training in trainings:
        own = units(training)
        if own.is_regression:
            predicted.append(own.prediction[:, 0])
            true.append(own.truth)
        elif own.prediction.shape[1] == 2:
            predicted.append(own.prediction[:, 1])
            true.append((own.truth == 1).astype(np.float64))
        else:
            likeliest = own.prediction.argmax(1)
            predicted.append(own.prediction.max(1))
            true.append((own.truth == likeliest).astype(np.float64))
    patients = rows["patient"].nunique()
    return Outcomes(np.concatenate(predicted), np.concatenate(true), len(trainings), patients)


def reliability(found: Outcomes) -> list[tuple[float, float, int]]:
    """(mean probability, share that was right, count) of bins with equally many predictions each."""
    order = np.argsort(found.predicted, kind="stable")
    bins = np.array_split(order, bins_for(found.patients))
    return [(float(found.predicted[b].mean()), float(found.true[b].mean()), len(b)) for b in bins if len(b)]


def _chart(view: View, measure: str, n: int, found: dict[str, Outcomes], regression: bool) -> Chart:
    where = f"{view.title(measure)} on {sentences.patients_in_words(n)}"
    if regression:
        caption = f"{where}: prediction against truth, a dot a patient and training. On the line: right."
        alt = f"{where}: predictions against truth, a panel an arm."
    else:
        caption = (
            f"{where}: calibration. Predictions of all trainings in bins of equal size; on the diagonal a probability "
            "is what it says, below it is too sure. The bins are few and patients recur: small departures mean "
            "nothing. The calibration error with its interval is under Numbers."
        )
        parts = []
        for arm, own in found.items():
            bins = "; ".join(f"{given:.2f} said, {true:.2f} true" for given, true, _ in reliability(own))
            parts.append(f"{view.name(measure, arm)}: {bins}")
        alt = f"{where}: calibration. {'. '.join(parts)}."
    name = files("calibration" if not regression else "regression", measure)
    return Chart(name, _draw(view, measure, found, regression), alt, caption)


def _draw(view: View, measure: str, found: dict[str, Outcomes], regression: bool) -> Figure:
    columns = min(COLUMNS, len(found))
    lines = -(-len(found) // columns)
    titles = {arm: broken(view.name(measure, arm), PANEL - 0.4, TITLE_SIZE, bold=True) for arm in found}
    with rc_context(STYLE):
        tall = lines * (PANEL + height([*titles.values()], TITLE_SIZE)) + 0.5  # so that panels are square
        figure = Figure(figsize=(0.6 + PANEL * columns, tall), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        values = np.concatenate([np.concatenate([own.predicted, own.true]) for own in found.values()])
        ends = [float(values.min()), float(values.max())] if regression else [0.0, 1.0]
        rim = 0.05 * (ends[1] - ends[0] or 1.0)
        limits = (ends[0] - rim, ends[1] + rim)
        for axis, (arm, own) in zip(axes.flat, found.items()):
            look = view.looks.get(arm)
            colour = look.colour if look else INK
            axis.plot(ends, ends, color=BASELINE_COLOUR, linewidth=1, linestyle="--")
            if regression:
                axis.plot(own.true, own.predicted, linestyle="", marker="o", markersize=2.5, color=colour, alpha=0.4)
            else:
                points = reliability(own)
                axis.plot(
                    [p for p, _, _ in points], [t for _, t, _ in points], color=colour, marker="o", markersize=4.5
                )
            axis.set_title(titles[arm], fontsize=TITLE_SIZE)
            axis.set(xlim=limits, ylim=limits)  # an aspect of the axes would put long titles outside the figure
        hide_unused(axes, len(found))
        figure.supxlabel("truth" if regression else "probability given", fontsize=10.5)
        figure.supylabel("prediction" if regression else "share that was true", fontsize=10.5)
    return figure


def _plain(measure: str, n: int, arm: str, own: Outcomes, regression: bool) -> dict[str, Any]:
    about: dict[str, Any] = {
        "measure": measure,
        "n_labelled": n,
        "arm": arm,
        "seeds": own.seeds,
        "patients": own.patients,
    }
    bins: Sequence[tuple[float, float, int]] = () if regression else reliability(own)
    return about | {"bins": [{"probability": p, "true": t, "count": c} for p, t, c in bins]}
