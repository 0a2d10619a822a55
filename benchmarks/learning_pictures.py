"""The pictures of bench_learning.py: loss curves, what a task sees, and VoCo's overlaps. Small PNGs."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from learning_voco import Agreement
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ssl3d import config
from ssl3d.checkpoint import load_objective, open_run
from ssl3d.log import METRICS_FILE, save_preview
from ssl3d.setup_run import RunData, open_stores

CURVE_BYTES, PREVIEW_BYTES = 60_000, 150_000
SMOOTH = 7  # points of a running mean


def losses(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """(steps, mean losses since the last line) of a run."""
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    return np.array([line["step"] for line in lines]), np.array([line["loss"] for line in lines])


def curve(runs: Mapping[str, Path], path: Path) -> None:
    """A panel a data set {title: run}: the loss and its running mean over the steps."""
    figure = Figure(figsize=(2.6 * len(runs), 2.1), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, run) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items()):
        steps, values = losses(run)
        axis.plot(steps, values, color="0.75", linewidth=0.8)
        kernel = np.ones(SMOOTH)
        mean = np.convolve(values, kernel, mode="same") / np.convolve(np.ones_like(values), kernel, mode="same")
        axis.plot(steps, mean, color="C0", linewidth=1.5)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_xlim(0, steps[-1])
    figure.axes[0].set_ylabel("loss", fontsize=8)
    _save(figure, path, CURVE_BYTES)


@torch.no_grad()
def preview(run: Path, path: Path, samples: int = 2) -> None:
    """The task's own preview pictures on the first `samples` regions the run was trained on."""
    task = load_objective(run)
    recipe = config.load(open_run(run)["recipe"])
    data = RunData.build(recipe, open_stores(recipe), task)
    count = max(samples, task.region.group)
    with data.reader(data.plan) as reader:
        batch = reader.read(range(count)).normalised()
    drawn = {k: v[:samples] for k, v in task(batch, preview=True).items() if k.startswith("preview/")}
    saved = save_preview(path.parent, 0, drawn)
    if saved is None:
        raise ValueError(f"{run}: its task draws no preview")
    _shrink(saved.read_bytes(), path, PREVIEW_BYTES)
    saved.unlink()


def overlaps(found: Mapping[str, Agreement], path: Path) -> None:
    """A panel a data set: the predicted overlap (quartiles) by the true one, on held-out volumes."""
    figure = Figure(figsize=(3.2 * len(found), 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, one) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items()):
        edges = [0, 1e-9, 0.05, 0.1, 0.2, 0.3, 0.45, 1.0001]
        groups, places = [], []
        for low, high in itertools.pairwise(edges):
            inside = (one.overlap >= low) & (one.overlap < high)
            if inside.sum() >= 3:
                groups.append(one.predicted[inside])
                places.append(float(one.overlap[inside].mean()))
        axis.boxplot(groups, positions=places, widths=0.03, showfliers=False, manage_ticks=False)
        axis.plot([0, max(places)], [0, max(places)], color="0.7", linewidth=0.8, zorder=0)
        words = f"{title}: Spearman {one.spearman:.2f},\npositive term {one.share_of_plateau:.2f} of its value at p = 0"
        axis.set_title(words, fontsize=8)
        axis.set_xlabel("true overlap", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.axes[0].set_ylabel("predicted overlap", fontsize=8)
    _save(figure, path, CURVE_BYTES)


def _save(figure: Figure, path: Path, most: int) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    _shrink(buffer.getvalue(), path, most)


def _shrink(png: bytes, path: Path, most: int) -> None:
    """Write a picture in few colours. Raises ValueError when it is larger than `most` bytes even so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(png)).convert("RGB").quantize(48).save(path, optimize=True)
    if path.stat().st_size > most:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than {most}")
