"""What bench_learning.py found, as rows, and as Markdown between markers of the pages in docs/."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import machine
from learning_data import DATA
from learning_pictures import curve, losses, overlaps, preview
from learning_tasks import ENTRIES, STEPS
from learning_voco import agreement

from downstream.comparison import Point, compare
from downstream.results import read_results
from downstream.sentences import interval, number
from downstream.splits import load_split

BEGIN, END = "<!-- learning: made by benchmarks/bench_learning.py -->", "<!-- /learning -->"
TAIL = 6  # log lines at either end of a curve whose mean is given


SUMMARY = """## What a few minutes of training are worth

Dice of a linear probe on the frozen encoder, less that of random encoders of the same network, with its 95 % interval
over labelled subsets and test patients; bold where it lies above 0. {steps} steps of two small crops
([../acceptance/learning.md](../acceptance/learning.md)): it shows that a task learns, and ranks no methods."""
HEAD = """# Every pretext task learns

Made by `python benchmarks/bench_learning.py`, then `--pages`. {machine}.

Each task is trained by its small recipe (`recipes/*_s.yaml`) through the same loop, with keys overridden to fit small
scans (`benchmarks/learning_tasks.py`): two crops of 16x32x24 voxels a step (phantom: 32x32x32), seed 0. Then the
encoder is frozen, and a linear probe (`ssl3d evaluate`) is compared with random encoders of the same network.

- **phantom**: 60 synthetic patients (`ssl3d.data.phantom`, seed 2): 30 to learn from, 8 of them labelled, 20 tested.
- **hippocampus**: MSD Task04 at 1 mm, 113 patients: 64 to learn from, 4 of them labelled, 33 tested.
- **one CT**: learns from one whole-torso CT at 3 mm; probed on a labelled CT of somebody else (TotalSegmentator's
  example; liver, spleen, colon, back muscles) in slabs of three slices: 2 slabs labelled, every second slab tested.
  The interval is over slabs of ONE patient: it says nothing about other patients.

Difference in Dice with its 95 % interval over labelled subsets and patients (slabs); bold where it lies above 0.
No network saw a test patient (the evaluation refuses those that did). Settings were chosen on the phantom's validation
patients, none on test patients, and taken over for the real data unseen."""


@dataclass(frozen=True)
class Row:
    """A task on a data set: the loss at the first and last log lines, and the probe beside random encoders."""

    task: str
    data: str
    steps: int
    first: float
    last: float
    amount: int
    dice: float
    random: float
    point: Point

    @property
    def better(self) -> bool:
        return self.point.verdict() == "better"

    def difference(self) -> str:
        """ "+0.08 (0.02 to 0.13)"."""
        found = self.point.difference
        assert found is not None
        return f"{number(found.mean, 3, signed=True)} ({interval(found, 3)})"


def collect(out: Path, name: str, results: str = "probe") -> list[Row]:
    """The rows of a data set, for every task whose probe is there, in the order of the table of tasks."""
    folder = out / name / results
    arms = json.loads((folder / "arms.json").read_text())
    baselines = {arm: content["baseline"] for arm, content in arms.items()}
    points = {point.arm: point for point in compare(read_results(folder), baselines)}
    rows = []
    for task in ENTRIES:
        if task not in points:
            continue
        steps, values = losses(out / name / task)
        point = points[task]
        rows.append(
            Row(
                task, name, int(steps[-1]), float(values[:TAIL].mean()), float(values[-TAIL:].mean()),
                point.n_labelled, point.score.mean, points[point.baseline].score.mean, point,
            )
        )  # fmt: skip
    return rows


def table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """A row a task, a column a data set: the paired difference in Dice; bold where its interval lies above 0."""
    found = {(row.task, row.data): row for row in rows}
    lines = ["| task | " + " | ".join(DATA[n] for n in names) + " |", "|---|" + "---|" * len(names)]
    for task in ENTRIES:
        cells = []
        for name in names:
            row = found.get((task, name))
            text = "not run" if row is None else row.difference()
            cells.append(f"**{text}**" if row is not None and row.better else text)
        if any(cell != "not run" for cell in cells):
            lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def losses_table(rows: Sequence[Row]) -> str:
    """A row a run: steps, the loss at both ends, the probe's Dice beside random encoders'."""
    lines = ["| task | data | steps | loss, first | loss, last | Dice | random encoder |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines += [
        f"| {r.task} | {DATA[r.data]} | {r.steps} | {r.first:.3g} | {r.last:.3g} | {r.dice:.3f} | {r.random:.3f} |"
        for r in rows
    ]
    return "\n".join(lines)


def sentence(rows: Sequence[Row]) -> str:
    """One line for a task's page: where its frozen features beat random ones, and where they do not."""
    better = [row for row in rows if row.better]
    rest = [row for row in rows if not row.better]
    parts = []
    if better:
        parts.append("beat a random encoder's on " + ", ".join(f"{DATA[r.data]} {r.difference()}" for r in better))
    for row in rest:
        word = "are worse than them" if row.point.verdict() == "worse" else "do **not** beat them"
        parts.append(f"{word} on {DATA[row.data]} {row.difference()}")
    steps = sorted({row.steps for row in rows})
    return f"after {' or '.join(map(str, steps))} steps on a CPU its frozen features {'; '.join(parts)}"


def insert(page: Path, text: str) -> None:
    """Put `text` between the page's markers; at its end when it has none yet."""
    before = page.read_text(encoding="utf-8")
    block = f"{BEGIN}\n{text.strip()}\n{END}"
    if BEGIN in before:
        after = re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: block, before, flags=re.DOTALL)
    else:
        after = before.rstrip("\n") + f"\n\n{block}\n"
    page.write_text(after, encoding="utf-8")


def page_text(title: str, tasks: Mapping[str, Sequence[Row]], pictures: Path) -> str:
    """Pictures and one line for each task of a page (some pages have two)."""
    lines = [f"## {title}", ""]
    for task, rows in tasks.items():
        if (pictures / f"{task}.png").exists():
            lines += [f"![what {task} sees and predicts, two samples]({pictures.name}/{task}.png)", ""]
        if (pictures / f"{task}_curve.png").exists():
            lines += [f"![loss of {task} over its steps]({pictures.name}/{task}_curve.png)", ""]
        lines += [f"`{task}`: {sentence(rows)} (Dice of a linear probe, 95 % interval).", ""]
    return "\n".join(lines)


def pages(out: Path, docs: Path) -> None:
    """Draw pictures and tables from what is in `out`: docs/methods, docs/acceptance/learning.md."""
    names = [name for name in DATA if (out / name / "probe" / "arms.json").exists()]
    rows = [row for name in names for row in collect(out, name)]
    methods, pictures = docs / "methods", docs / "methods" / "pictures"
    by_page: dict[str, dict[str, list[Row]]] = {}
    for task, entry in ENTRIES.items():
        own = [row for row in rows if row.task == task]
        if own:
            by_page.setdefault(entry.page, {})[task] = own
            curve({DATA[row.data]: out / row.data / task for row in own}, pictures / f"{task}_curve.png")
            preview(out / own[-1].data / task, pictures / f"{task}.png")
    for page, tasks in by_page.items():
        insert(methods / f"{page}.md", page_text("What it learns in minutes", tasks, pictures))
    results, where = table(rows, names), machine()
    insert(methods / "README.md", f"{SUMMARY.format(steps=STEPS)}\n\n{results}")
    said = f"{where['cores']} x {where['cpu']}, one thread, torch {where['versions']['torch']}"
    text = [f"{HEAD.format(machine=said)}\n\n## Probe\n\n{results}", f"## Runs\n\n{losses_table(rows)}"]
    text.append(voco_text(out, names, pictures / "voco_overlap.png"))
    (docs / "acceptance" / "learning.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


def voco_text(out: Path, names: Sequence[str], picture: Path) -> str:
    """VoCo's overlaps on the test patients, none of whom it was trained on; draws the picture."""
    found = {}
    for name in names:
        if name != "ct" and (out / name / "voco" / "checkpoints").is_dir():
            found[DATA[name]] = agreement(out / name / "voco", load_split(out / "data" / f"{name}_split.json").test)
    if not found:
        return ""
    overlaps(found, picture)
    lines = ["| data | steps | volumes held out | Spearman | positive term | at p = 0 | ratio |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines += [
        f"| {title} | {one.steps} | {one.volumes} | {one.spearman:.2f} | {one.positive:.3f} | {one.at_zero:.3f} | "
        f"{one.share_of_plateau:.2f} |"
        for title, one in found.items()
    ]
    link = f"![predicted against true overlap](../methods/pictures/{picture.name})"
    return f"## VoCo: predicted and true overlap\n\n{link}\n\n" + "\n".join(lines)
