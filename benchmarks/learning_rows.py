"""What bench_learning.py found, as rows: read from evaluations, kept beside the pages, and merged with what is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from learning_pictures import losses
from learning_tasks import ENTRIES

from downstream.comparison import Point, compare
from downstream.results import read_results
from downstream.sentences import number

TAIL = 6  # log lines at either end of a curve whose mean is given


@dataclass(frozen=True)
class Difference:
    """A paired difference in Dice and its 95 % interval over labelled subsets and patients."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """ "+0.080 (0.020 to 0.130)"."""
        return f"{number(self.mean, 3, signed=True)} ({number(self.low, 3)} to {number(self.high, 3)})"

    @property
    def verdict(self) -> str:
        """ "better", "worse", or "not distinguishable" where the interval holds 0."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "not distinguishable"


@dataclass(frozen=True)
class Row:
    """A task on a data set: the loss at the first and last log lines, and the probe beside random encoders.

    `patients`: whose scans were scored, "test" or "validation"; `tuned`: fine-tuning beside scratch, if it was run.
    """

    task: str
    data: str
    patients: str
    steps: int
    first: float
    last: float
    amount: int
    dice: float
    random: float
    probe: Difference
    tuned: Difference | None

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Row:
        """The row that `asdict` took apart."""
        probe, tuned = stored["probe"], stored["tuned"]
        return cls(**{**stored, "probe": Difference(**probe), "tuned": Difference(**tuned) if tuned else None})


def collect(out: Path, name: str, results: str = "probe") -> list[Row]:
    """The rows of a data set, for every task whose probe is there, in the order of the table of tasks."""
    found = [compared(folder) for folder in probed(out / name, results)]
    probes = [own["probe"] for own in found]
    baselines = {arm: own[point.baseline] for own in probes for arm, point in own.items() if point.baseline in own}
    points = {arm: point for own in probes for arm, point in own.items()}
    tuned = {arm: point for own in found for arm, point in own.get("finetune", {}).items()}
    patients = "test" if results == "probe" else "validation"
    rows = []
    for task in ENTRIES:
        if task not in points:
            continue
        steps, values = losses(out / name / task)
        point = points[task]
        rows.append(
            Row(
                task, name, patients, int(steps[-1]), float(values[:TAIL].mean()), float(values[-TAIL:].mean()),
                point.n_labelled, point.score.mean, baselines[task].score.mean, difference(point),
                difference(tuned[task]) if task in tuned else None,
            )
        )  # fmt: skip
    return rows


def difference(point: Point) -> Difference:
    """A point beside its baseline."""
    found = point.difference
    assert found is not None and found.low is not None and found.high is not None
    return Difference(found.mean, found.low, found.high)


def probed(folder: Path, results: str) -> list[Path]:
    """The evaluations of a data set, one for each size of windows."""
    return [one for one in sorted(folder.glob(f"{results}*")) if (one / "arms.json").exists()]


def compared(folder: Path) -> dict[str, dict[str, Point]]:
    """{measure: {arm: itself beside its baseline}} of an evaluation."""
    arms = json.loads((folder / "arms.json").read_text())
    baselines = {arm: content["baseline"] for arm, content in arms.items()}
    found: dict[str, dict[str, Point]] = {}
    for point in compare(read_results(folder), baselines):
        found.setdefault(point.measure, {})[point.arm] = point
    return found


@dataclass
class Kept:
    """What the pages stand on: a later round on some tasks leaves the figures of the others where they are.

    `voco`: {title of a data set: a line of its table}; `costs`: the rows of bench_tasks.py.
    """

    rows: list[Row]
    voco: dict[str, dict[str, float]]
    costs: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Kept:
        """What `write` wrote; nothing where there is no file."""
        if not path.exists():
            return cls([], {}, [])
        stored = json.loads(path.read_text())
        return cls([Row.of(row) for row in stored["rows"]], stored["voco"], stored["costs"])

    def write(self, path: Path) -> None:
        """A line a row, so that a change of a figure is a change of a line."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def renew(self, rows: Sequence[Row]) -> None:
        """Put rows in the place of those of the same task and data, in the order of the tables of both."""
        found = {(row.data, row.task): row for row in [*self.rows, *rows]}
        data = list(dict.fromkeys(row.data for row in found.values()))
        self.rows = [found[name, task] for name in data for task in ENTRIES if (name, task) in found]
