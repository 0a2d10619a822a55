"""Case pictures: a slice of a test scan with the reference and each arm's prediction as contours."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from downstream.drawing import STYLE, TITLE_SIZE
from downstream.lettering import broken
from ssl3d.viewer import class_colours

PREDICTION = "prediction__"  # prediction__<arm> in the npz file
REFERENCE, REFERENCE_COLOUR = "reference", "white"
MARGIN = 0.35  # of the box around the reference, shown around it
MIN_SIDE = 40  # voxels shown at least along an axis
PANEL = 2.7  # inches of an arm's picture


@dataclass(frozen=True)
class Case:
    """One test case: image, reference and predictions (D, H, W); spacing in mm; whose and which training's it is.

    `dice` {arm: mean foreground Dice of the pictured prediction}; `classes` {label value: name}. Both, `measure` and
    `n_labelled` are empty or None where the file does not say.
    """

    name: str
    patient: str
    image: NDArray[np.floating]
    reference: NDArray[np.integer]
    predictions: Mapping[str, NDArray[np.integer]]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dice: Mapping[str, float] = field(default_factory=dict)
    classes: Mapping[int, str] = field(default_factory=dict)
    measure: str | None = None
    n_labelled: int | None = None


def load_case(path: Path) -> Case:
    """Read a file of OUT/cases. Raises ValueError naming the file when an array is missing or of another shape."""
    with np.load(path, allow_pickle=False) as file:
        content = {name: file[name] for name in file.files}
    missing = [name for name in ("image", "reference") if name not in content]
    if missing:
        raise ValueError(f"{path} has no array '{missing[0]}': delete it, and run ssl3d evaluate again")
    reference = _volume(content["reference"])
    image = _volume(content["image"]).astype(np.float32)
    found = {n.removeprefix(PREDICTION): _volume(a) for n, a in content.items() if n.startswith(PREDICTION)}
    for name, array in {"image": image, **found}.items():
        if array.shape != reference.shape:
            raise ValueError(f"{path}: '{name}' has the shape {array.shape}, the reference {reference.shape}")
    z, y, x = (float(v) for v in content.get("spacing", (1.0, 1.0, 1.0)))
    arms, dice = content.get("arms", np.array([])), content.get("dice", np.array([]))
    values, names = content.get("class_values", np.array([])), content.get("class_names", np.array([]))
    return Case(
        path.stem,
        str(content.get("patient", path.stem)),
        image,
        reference,
        found,
        (z, y, x),
        {str(arm): float(value) for arm, value in zip(arms, dice)},
        {int(value): str(name) for value, name in zip(values, names)},
        str(content["measure"]) if "measure" in content else None,
        int(content["n_labelled"]) if "n_labelled" in content else None,
    )


def renamed(case: Case, names: Mapping[str, str]) -> Case:
    """The case with its arms called by `names`, as far as those know them."""
    return replace(
        case,
        predictions={names.get(arm, arm): array for arm, array in case.predictions.items()},
        dice={names.get(arm, arm): value for arm, value in case.dice.items()},
    )


def extremes(scores: pd.DataFrame, baselines: Mapping[str, str]) -> dict[str, str]:
    """{patient: why he is worth a look}: "best by score", "worst by score", "largest gain", "largest loss".

    `scores`: a row a patient, a column an arm, high is good; `baselines` {arm: the arm it is compared with}. Best and
    worst go by the mean over arms, gain and loss by the mean over arms of the difference to their baselines. A patient
    with two reasons is named once.
    """
    level = scores.mean(axis=1).dropna()
    if level.empty:
        return {}
    found = [(str(level.idxmax()), "best by score"), (str(level.idxmin()), "worst by score")]
    paired = [
        scores[arm] - scores[other] for arm, other in baselines.items() if arm != other and {arm, other} <= {*scores}
    ]
    if paired:
        change = (sum(paired[1:], start=paired[0]) / len(paired)).dropna()
        for word, sign in (("largest gain", 1), ("largest loss", -1)):
            if len(change) and (sign * change).max() > 0:
                found.append((str((sign * change).idxmax()), word))
    reasons: dict[str, list[str]] = {}
    for patient, why in found:
        reasons.setdefault(patient, []).append(why)
    return {patient: " and ".join(why) for patient, why in reasons.items()}


def worth_a_look(scores: pd.DataFrame, baselines: Mapping[str, str], count: int) -> list[str]:
    """At most `count` patients: the extremes, then others spread evenly between the best and the worst."""
    level = scores.mean(axis=1).dropna().sort_values(ascending=False)
    chosen = list(extremes(scores, baselines))[:count]
    others = [str(patient) for patient in level.index if patient not in chosen]
    more = min(count - len(chosen), len(others))
    between = np.linspace(0, len(others) - 1, more + 2)[1:-1].round().astype(int)
    return [*chosen, *dict.fromkeys(others[i] for i in between)]


def choose(cases: Sequence[Case], scores: pd.DataFrame, baselines: Mapping[str, str]) -> list[tuple[Case, str]]:
    """The cases, each with what it shows: `extremes` of all patients first, then those in between, best first.

    Cases of unscored patients are left out.
    """
    reasons = extremes(scores, baselines)
    level = scores.mean(axis=1).dropna()
    known = [case for case in cases if case.patient in level.index]
    order = list(reasons)
    known.sort(key=lambda c: (order.index(c.patient) if c.patient in order else len(order), -level[c.patient]))
    return [(case, reasons.get(case.patient, "in between")) for case in known]


def montage(case: Case, arms: Sequence[str]) -> Figure:
    """Columns: the image with the reference, then each arm's prediction over the reference (white).

    The axial slice with the most labelled voxels, seen from below: the patient's left on the right.
    """
    slice_, box = pictured(case)
    classes = outlined(case)
    colours = class_colours(classes)
    image = case.image[slice_][box]
    low, high = (float(v) for v in np.percentile(image, [0.5, 99.5]))
    aspect = case.spacing[1] / case.spacing[2]
    ratio = image.shape[0] * aspect / image.shape[1]
    columns = [REFERENCE, *arms]
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(PANEL * len(columns), PANEL * ratio), layout="constrained")
        axes = figure.subplots(1, len(columns), squeeze=False)[0]
        for axis, name in zip(axes, columns):
            axis.imshow(
                image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect, interpolation="nearest"
            )
            reference = case.reference[slice_][box]
            if name == REFERENCE:
                _contours(axis, reference, colours, 1.6)
            else:
                _contours(axis, reference, dict.fromkeys(classes, REFERENCE_COLOUR), 1.0)
                _contours(axis, case.predictions[name][slice_][box], colours, 1.6)
            outline = [withStroke(linewidth=2.5, foreground="black")]  # legible on any tissue, the page light or dark
            at = {"transform": axis.transAxes, "ha": "left", "va": "top", "color": "white", "fontsize": TITLE_SIZE}
            axis.text(0.03, 0.97, broken(name, PANEL - 0.3, TITLE_SIZE), path_effects=outline, **at)
            axis.set_axis_off()
    return figure


def outlined(case: Case) -> list[int]:
    """The label values that are shown: the case's classes (an ignore value is none); all, where the file names none."""
    return sorted(case.classes) or sorted(int(v) for v in np.unique(case.reference) if v > 0)


def png(figure: Figure, dpi: int = 110) -> str:
    """The figure as a data URI."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=dpi, transparent=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()


def _volume(array: NDArray[Any]) -> NDArray[Any]:
    """(D, H, W); of several channels the first."""
    return array[0] if array.ndim == 4 else array


def pictured(case: Case) -> tuple[int, tuple[slice, ...]]:
    """Axial slice with the most labelled voxels, and the box in it around reference and predictions."""
    labelled = case.reference > 0
    index = int(labelled.sum((1, 2)).argmax()) if labelled.any() else case.reference.shape[0] // 2
    plane = labelled[index]
    for prediction in case.predictions.values():
        plane = plane | (prediction[index] > 0)
    return index, around(plane)


def around(marked: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box around what is marked in a plane or volume, with a margin, within it; all of it where nothing is."""
    box = []
    for axis, size in enumerate(marked.shape):
        where = np.flatnonzero(marked.any(tuple(a for a in range(marked.ndim) if a != axis)))
        if not where.size:
            return tuple(slice(0, n) for n in marked.shape)
        extent = max(int((where[-1] - where[0] + 1) * (1 + 2 * MARGIN)), MIN_SIDE)
        start = max(0, min((int(where[0]) + int(where[-1]) + 1 - extent) // 2, size - extent))
        box.append(slice(start, min(start + extent, size)))
    return tuple(box)


def _contours(axis: Axes, labels: NDArray[np.integer], colours: Mapping[int, str], width: float) -> None:
    """Closed lines around every class of a slice (H, W)."""
    padded = np.pad(labels, 1)  # so that a mask at the border is closed there
    y, x = (np.arange(-1, n + 1) for n in labels.shape)
    for value, colour in colours.items():
        if (labels == value).any():
            line = axis.contour(x, y, padded == value, levels=[0.5], colors=[colour], linewidths=width)
            line.set_path_effects([withStroke(linewidth=width + 1, foreground="#00000090")])
    axis.set_xlim(-0.5, labels.shape[1] - 0.5)
    axis.set_ylim(labels.shape[0] - 0.5, -0.5)
