"""What a pre-training run's directory tells: its loss curve and last losses, for one run or several side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from downstream import drawing, page
from downstream.blocks import Block, Chart, Html, Section, Table
from ssl3d.files import write_text
from ssl3d.log import METRICS_FILE, WARNING, read_metrics

RECIPE_FILE, ENVIRONMENT_FILE = "recipe.yaml", "environment.json"
REPORT, LOSS = "report.html", "loss.png"
TIMES = "time/"
LOSS_KEY = "loss"
WIDTH = 8.5  # inches of the figure


@dataclass(frozen=True)
class Training:
    """A run: the lines of its metrics.jsonl, and its recipe and environment as text (empty when missing)."""

    directory: Path
    name: str
    lines: tuple[dict[str, Any], ...]
    recipe: str
    environment: str

    def warnings(self) -> list[str]:
        """What observers said of the run, in words."""
        return [str(line[WARNING]) for line in self.lines if WARNING in line]

    def last(self) -> dict[str, float]:
        """{name: its last number} of all that was logged, timings aside."""
        found: dict[str, float] = {}
        for line in self.lines:
            numbers = {k: float(v) for k, v in line.items() if isinstance(v, int | float) and not k.startswith(TIMES)}
            found |= numbers
        return found


def is_run(directory: Path) -> bool:
    return (directory / METRICS_FILE).is_file()


def load_run(directory: Path) -> Training:
    """Read a run directory. Raises ValueError when nothing has been logged yet."""
    lines = read_metrics(directory / METRICS_FILE)
    if not any(LOSS_KEY in line for line in lines):
        raise ValueError(f"{directory / METRICS_FILE} holds no loss yet: let the run reach run.log_every steps")
    recipe, environment = (_text(directory / name) for name in (RECIPE_FILE, ENVIRONMENT_FILE))
    return Training(directory, directory.resolve().name, tuple(lines), recipe, environment)


def write_page(trainings: Sequence[Training], folder: Path) -> Path:
    """Write report.html and loss.png into `folder`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    title = f"Pre-training of {trainings[0].name}" if len(trainings) == 1 else "Pre-training runs"
    names = _unique([training.name for training in trainings])
    caption = "Loss against optimiser step, as logged. Losses of different tasks are not comparable."
    figure = draw(trainings, names)
    texts: list[Block] = []
    for name, training in zip(names, trainings):
        texts += [
            page.details(f"{word} of {name}", content)
            for word, content in (("Recipe", training.recipe), ("Environment", training.environment))
            if content
        ]
    sections = [
        Section("", [Html(f"<h1>{page.text(title)}</h1>"), Chart("loss", figure, "loss against step", caption),
                     *_warnings(trainings, names)]),
        Section("Last values", [_last_values(trainings, names)]),
        Section("Recipe and environment", texts),
    ]  # fmt: skip
    drawing.save(figure, folder / LOSS)
    write_text(folder / REPORT, page.page(title, sections))
    return folder / REPORT


def draw(trainings: Sequence[Training], names: Sequence[str]) -> Figure:
    """Loss curves of the runs, their names above them."""
    above = drawing.legend_height(names, WIDTH) if len(trainings) > 1 else 0.0
    looks = drawing.looks((), names)
    with rc_context(drawing.STYLE):
        figure = Figure(figsize=(WIDTH, 4.2 + above), layout="constrained")
        axes = figure.subplots()
        for training, name in zip(trainings, names):
            shown = [line for line in training.lines if LOSS_KEY in line]
            axes.plot(
                [line["step"] for line in shown],
                [line[LOSS_KEY] for line in shown],
                label=name,
                color=looks[name].colour,
                linestyle=looks[name].line,
                linewidth=1.6,
                marker="o" if len(shown) < 3 else None,
            )
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        if len(trainings) > 1:
            drawing.legend(figure, axes)
    return figure


def _warnings(trainings: Sequence[Training], names: Sequence[str]) -> list[Html]:
    """A box for each run that has been warned of."""
    return [
        Html('<div class="warning">' + "".join(f"<p>{page.text(f'{name}: {words}')}</p>" for words in said) + "</div>")
        for name, training in zip(names, trainings)
        if (said := training.warnings())
    ]


def _last_values(trainings: Sequence[Training], names: Sequence[str]) -> Table:
    values = [training.last() for training in trainings]
    keys = sorted({key for own in values for key in own} - {"step"})
    keys = sorted(keys, key=lambda key: (key != LOSS_KEY, key))
    rows = [
        (name, f"{own.get('step', 0):.0f}", *(f"{own[k]:.4g}" if k in own else "" for k in keys))
        for name, own in zip(names, values)
    ]
    return Table("", ["run", "step", *keys], rows, numbers=range(1, len(keys) + 2))


def _unique(names: Sequence[str]) -> list[str]:
    """Runs of equal name are numbered."""
    return [name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    content = path.read_text(encoding="utf-8")
    return json.dumps(json.loads(content), indent=2) if path.suffix == ".json" else content
