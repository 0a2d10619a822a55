"""What bench_learning.py found, as Markdown between markers of the pages in docs/."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, machine
from learning_data import DATA
from learning_pictures import curve, overlaps, preview
from learning_rows import Difference, Kept, Row, collect, probed
from learning_tasks import ENTRIES, STEPS
from learning_voco import agreement

from downstream.splits import load_split

MAKER = "learning: made by benchmarks/bench_learning.py"

PRICES = {"time of plain": "time of a step", "memory of plain": "its memory"}
SUMMARY = """## What a few minutes of training are worth

Dice of a linear probe on the frozen encoder, less that of random encoders of the same network; in the last column Dice
after 100 steps of fine-tuning on 4 labelled patients, less that of scratch with the same steps. With 95 % intervals
over labelled subsets and patients, bold where they lie above 0. {steps} steps of small crops, where
[../acceptance/learning.md](../acceptance/learning.md) states no other number. It ranks no methods; where the interval
holds 0, nothing was shown at this size. Settings were chosen on validation patients, so that a column of theirs
flatters; "not run" is what nobody has measured here. After 2,500 steps on the hippocampus most of it was:
[all methods beside each other](comparison.md). Time and memory are those of a step beside a plain pass
([below](#what-a-step-costs))."""
COST = """## What a step costs

A step of each small recipe, forward and backward, beside a plain pass of its own network over one input of that size
(through the decoder where the task trains it), in time and in memory at the peak above the weights. Made by
`python benchmarks/bench_tasks.py` on a CPU, float32, one thread; on a GPU the ratios are others, and were not measured.
Inputs that a sample sends through the network, a teacher's apart, say most of it."""
HEAD = """# What the pretext tasks learn in minutes

Made by `python benchmarks/bench_learning.py`, then `--pages`. {machine}.

Each task is trained by its small recipe (`recipes/*_s.yaml`) through the same loop, with keys overridden to fit small
scans (`benchmarks/learning_tasks.py`), seed 0. Then the encoder is frozen, and a linear probe (`ssl3d evaluate`) is
compared with random encoders of the same network.

- **phantom**: 180 synthetic patients (`ssl3d.data.phantom`, seed 2): 30 to learn from, 8 of them labelled in ten
  subsets, 10 to choose settings by, and 60 to be tested, none of whose figures had been seen before. (20 and 60 others
  were tested in earlier rounds, after which settings were changed; they serve nothing now.)
- **hippocampus**: MSD Task04 at 1 mm, 113 patients: 64 to learn from, 4 of them labelled, 16 to choose settings by, 33
  to be tested.
- **one CT**: learns from one whole-torso CT at 3 mm; probed on a labelled CT of somebody else (TotalSegmentator's
  example; liver, spleen, colon, back muscles) in slabs of three slices: 2 slabs labelled, every second slab tested.
  The interval is over slabs of ONE patient: it says nothing about other patients.

A CNN is read at all its scales, in windows of 56x56x56 (phantom), 40x56x40 (hippocampus) or 24x64x64 (CT); a ViT at
its four blocks, in windows of its training crops, as it has learnt no positions beyond them. Difference in Dice with
its 95 % interval over labelled subsets and patients (slabs); bold where it lies above 0. Training reads the pool alone,
and the evaluation refuses networks that saw a patient they are scored on (the slabs of the one CT overlap in their
unlabelled margins, which is allowed there). Settings were chosen on validation patients, so that figures of theirs
flatter.

On the phantom five tasks beat random features after so few steps: MAE, SparseMAE, position with MAE, VolumeFusion and
VoCo. JEPA is worse; position alone and LocalContrast are better in the mean, and their intervals hold 0, as those of
all others do: "every task beats random features" is not met at this size. In the round before, on 60 other patients and
in windows of 32x32x32, MAE, SparseMAE, position with MAE and VoCo had been better, and SimCLR and VICReg worse (-0.017
and -0.022): their pooled features are standardised since, as the batch norm of the published projectors does, without
which SimCLR's loss had stayed at chance on the hippocampus (1.945 of 1.946 after 300 steps; 1.68 now). JointClustering
stayed at chance (two uniform codes) on the hippocampus, before and (215 steps) after its features were standardised.

Tried before on the phantom's validation patients, 300 steps, smaller patches (16x32x24; crops of 16 voxels for SimCLR
and VoCo): MAE -0.003, ModelsGenesis -0.030 (interval below 0), SimMIM +0.002, SimCLR +0.013, VoCo +0.004 with other
settings than now; and position regression with flips -0.033 (interval below 0): its recipes do not flip since. With
patches of 32x32x32: position and MAE together -0.019, LocalContrast -0.013, SparseMAE after 800 steps +0.003,
ModelsGenesis after 1,000 steps -0.044 and Hi-End-MAE after 2,000 steps -0.034 (both intervals below 0). Later, in
windows of 32x32x32: ModelsGenesis after 2,500 steps -0.034 with 8 labelled and -0.007 with 24 (intervals hold 0),
SimCLR after 2,000 steps on crops of 24x24x24 -0.022 (interval below 0); SimMIM and Hi-End-MAE as below, -0.004 each
read at four blocks, -0.001 and -0.006 at the last alone (intervals hold 0). More steps did not make these four useful
here; their runs below are those of the first round."""


def table(rows: Sequence[Row], titles: Mapping[str, str], prices: Sequence[Mapping[str, Any]] = ()) -> str:
    """A row a task, a column a data set {name: title}, and one where networks were fine-tuned: differences in Dice.

    Paired, to random encoders or to scratch; bold where the interval lies above 0. With `prices` (Kept.costs) also
    time and memory of a step of the task's recipe.
    """
    paid = {price["recipe"]: price for price in prices}
    found = {(row.task, row.data): row for row in rows}
    tuned = [name for name in titles if any(row.tuned for row in rows if row.data == name)]
    heads = [*titles.values(), *(f"{titles[name]}, fine-tuned" for name in tuned), *(PRICES.values() if paid else ())]
    lines = ["| task | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for task in ENTRIES:
        own = {name: found[task, name] for name in titles if (task, name) in found}
        cells = [own[name].probe if name in own else None for name in titles]
        cells += [own[name].tuned if name in own else None for name in tuned]
        price = paid.get(ENTRIES[task].recipe)
        costs = [f"{price[name]:.2f}" if price else "not measured" for name in PRICES] if paid else []
        lines.append(f"| {task} | " + " | ".join([*map(cell, cells), *costs]) + " |")
    return "\n".join(lines)


def cell(found: Difference | None) -> str:
    """A difference, bold where it is better, of the table."""
    if found is None:
        return "not run"
    return f"**{found}**" if found.verdict == "better" else str(found)


def costs(rows: Sequence[Mapping[str, Any]]) -> str:
    """What bench_tasks.py measured on a CPU, a row a recipe; nothing where nothing was."""
    if not rows:
        return ""
    lines = ["| recipe | input | inputs a sample | time of a plain pass | its memory |", "|---|---|---|---|---|"]
    lines += [
        f"| `{row['recipe']}` | {row['input']} | {row['passes']} | {row['time of plain']:.2f} | "
        f"{row['memory of plain']:.2f} |"
        for row in rows
    ]
    return COST + "\n\n" + "\n".join(lines)


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
    words = {"better": "beat", "worse": "are **worse** than", "not distinguishable": "do **not** beat"}
    parts = [
        f"{words[row.probe.verdict]} those of random encoders on the {row.patients} patients of the "
        f"{DATA[row.data]}, {row.probe}"
        for row in rows
    ]
    steps = " or ".join(str(n) for n in sorted({row.steps for row in rows}))
    return f"after {steps} steps on a CPU its frozen features {'; they '.join(parts)}"


def insert(page: Path, text: str, maker: str = MAKER) -> None:
    """Put `text` between the page's markers, which name its `maker`; at its end when it has none yet."""
    before = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {maker} -->", f"<!-- /{maker.partition(':')[0]} -->"
    block = f"{begin}\n{text.strip()}\n{end}"
    if begin in before:
        after = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: block, before, flags=re.DOTALL)
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
    lines.append("All tasks and how it was measured: [../acceptance/learning.md](../acceptance/learning.md).")
    return "\n".join(lines)


def pages(out: Path, docs: Path) -> None:
    """Pictures, tables and docs/acceptance/learning.json of what is in `out`, and of what that file kept."""
    store = docs / "acceptance" / "learning.json"
    kept = Kept.read(store)
    kinds = {name: kind for name in DATA for kind in ("validation", "probe") if probed(out / name, kind)}
    kept.renew([row for name, kind in kinds.items() for row in collect(out, name, kind)])
    if (RESULTS / "bench_tasks.json").exists():
        kept.costs = json.loads((RESULTS / "bench_tasks.json").read_text())["rows"]
    pictures = docs / "methods" / "pictures"
    for task in ENTRIES:
        runs = {DATA[n]: out / n / task for n in DATA if (out / n / task / "checkpoints").is_dir()}
        if runs and {DATA[row.data] for row in kept.rows if row.task == task} <= set(runs):
            curve(runs, pictures / f"{task}_curve.png")  # else it would lose the panel of a run that is gone
        if runs:
            preview(runs.get(DATA["hippocampus"], next(iter(runs.values()))), pictures / f"{task}.png")
    kept.voco |= voco_lines(out, list(DATA), pictures / "voco_overlap.png", set(kept.voco))
    kept.write(store)
    write(kept, docs)


def write(kept: Kept, docs: Path) -> None:
    """The pages of docs/methods and docs/acceptance/learning.md."""
    methods, rows = docs / "methods", kept.rows
    by_page: dict[str, dict[str, list[Row]]] = {}
    for task, entry in ENTRIES.items():
        own = [row for row in rows if row.task == task]
        if own:
            by_page.setdefault(entry.page, {})[task] = own
    for page, tasks in by_page.items():
        insert(methods / f"{page}.md", page_text("What it learns in minutes", tasks, methods / "pictures"))
    validated = {row.data for row in rows if row.patients == "validation"}
    titles = {n: DATA[n] + (", validation patients" if n in validated else "") for n in DATA}
    results = table(rows, titles)
    summary = f"{SUMMARY.format(steps=STEPS)}\n\n{table(rows, titles, kept.costs)}"
    insert(methods / "README.md", "\n\n".join(filter(None, [summary, costs(kept.costs)])))
    where = machine()
    computer = f"{where['cores']} x {where['cpu']}, one thread, torch {where['versions']['torch']}"
    text = [f"{HEAD.format(machine=computer)}\n\n## Probe\n\n{results}", f"## Runs\n\n{losses_table(rows)}"]
    text.append(voco_text(kept.voco))
    (docs / "acceptance" / "learning.md").write_text("\n\n".join(filter(None, text)) + "\n", encoding="utf-8")


def voco_lines(out: Path, names: Sequence[str], picture: Path, kept: Collection[str]) -> dict[str, dict[str, float]]:
    """VoCo's overlaps on the test patients, none of whom it saw; the picture where no panel would be lost."""
    found = {}
    for name in names:
        if name != "ct" and (out / name / "voco" / "checkpoints").is_dir():
            test = load_split(out / "data" / f"{name}_split.json").test
            found[DATA[name]] = agreement(out / name / "voco", test, out / "data" / f"{name}.zarr")
    if found and set(kept) <= set(found):
        overlaps(found, picture)
    return {title: one.line() for title, one in found.items()}


def voco_text(lines: Mapping[str, Mapping[str, float]]) -> str:
    """The table of VoCo's overlaps."""
    if not lines:
        return ""
    text = [
        "| data | steps | volumes held out | Spearman | positive term | at p = 0 | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    text += [
        f"| {title} | {one['steps']} | {one['volumes']} | {one['spearman']:.2f} | {one['positive']:.3f} | "
        f"{one['at_zero']:.3f} | {one['share_of_plateau']:.2f} |"
        for title, one in lines.items()
    ]
    link = "![predicted against true overlap](../methods/pictures/voco_overlap.png)"
    return f"## VoCo: predicted and true overlap\n\n{link}\n\n" + "\n".join(text)
