"""What the study says of every method, from docs/results/<study>/report.json, on the pages of docs/methods.

All of them beside each other on comparison.md, and of each its own rows on its own page. Written by
`benchmarks/study.py --only pages`; between its markers alone, what people wrote around them stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learning_report import insert
from learning_rows import Difference, Kept
from learning_tasks import ENTRIES
from study_arms import METHODS, RESENC, RUNS, VIT

from ssl3d import config

PAGE, MAKER = "comparison.md", "study: made by benchmarks/study.py"
OWN = """## What it was worth in the study

After 2,500 steps on the same patients as every other method. Differences to the same network without pre-training, with
95 % intervals, bold where they lie above 0: [what the columns mean, and all methods](comparison.md)."""
NETWORKS = {RESENC: "ResEnc", VIT: "ViT"}
PRICE = "time of plain"  # of a step, as bench_tasks.py calls it
PAGES = {entry.recipe: entry.page for entry in ENTRIES.values()} | {
    "continual_mae_resenc_s": "distillation",
    "multimodal_mae_resenc_s": "distillation",
}
Cell = tuple[str, int]  # a measure, and how many patients are labelled


@dataclass(frozen=True)
class Compared:
    """A table: studies on one data set, and of which measures at which amounts it has columns."""

    title: str
    studies: tuple[str, ...]
    metric: str
    columns: tuple[Cell, ...]


TABLES = (
    Compared("Hippocampus, Dice", ("hippocampus", "beyond", "onward"), "dice",
             (("probe", 1), ("probe", 4), ("probe", 16), ("finetune", 4))),
    Compared("Phantom, Dice", ("phantom",), "dice", (("probe", 1), ("probe", 4), ("probe", 16), ("finetune", 4))),
    Compared("Phantom pathology, AUROC", ("pathology",), "auroc",
             (("probe", 4), ("probe", 16), ("neighbours", 16), ("finetune", 16))),
    Compared("Phantom pathology with more patients, AUROC", ("pathology_many",), "auroc",
             (("probe", 16), ("probe", 64), ("probe", 256), ("neighbours", 256), ("finetune", 256))),
)  # fmt: skip
WORDS = {"probe": "linear probe", "neighbours": "nearest neighbours", "finetune": "fine-tuned"}


def write_methods(docs: Path) -> None:
    """Write the tables into docs/methods/comparison.md and the methods' pages; a study that was not run has none."""
    methods = docs / "methods"
    prices = {row["recipe"]: row[PRICE] for row in Kept.read(docs / "acceptance" / "learning.json").costs}
    every, own = [], {}
    for table in TABLES:
        found = {study: points for study in table.studies if (points := read(docs, study))}
        rows = [row for study in found for row in rows_of(table, study, found, prices)]
        if rows:
            every += [f"## {table.title}", "\n".join([*head(table), *(line for _, line in rows)])]
        for name in dict.fromkeys(name for name, _ in rows):
            mine = [line for other, line in rows if other == name]
            own.setdefault(page(name), []).append((f"{table.title}, `{name}`", "\n".join([*head(table), *mine])))
    insert(methods / PAGE, "\n\n".join(every), MAKER)
    for name, parts in own.items():
        pictures = shown_pictures(methods, name)
        insert(methods / f"{name}.md", "\n\n".join([OWN, *pictures, *(f"{a}:\n\n{b}" for a, b in parts)]), MAKER)


def shown_pictures(methods: Path, page_name: str) -> list[str]:
    """What was drawn of the runs of a page (benchmarks/study_pictures.py), as Markdown."""
    found = []
    for method, network in METHODS:
        name = drawn(method, network)
        if page(method) == page_name and (methods / "pictures" / f"{name}.png").exists():
            what = f"{method} on a {NETWORKS[network]}, after 2,500 steps"
            found.append(f"![what it sees and predicts: {what}, two samples](pictures/{name}.png)")
            found.append(f"![its loss: {what}](pictures/{name}_curve.png)")
    return found


def drawn(method: str, network: str) -> str:
    """How pictures of its first run are called."""
    return f"{method}_{network}_study"


def read(docs: Path, study: str) -> list[dict[str, Any]]:
    """The points of a study's report; none where it was not run."""
    file = docs / "results" / study / "report.json"
    points: list[dict[str, Any]] = json.loads(file.read_text())["points"] if file.exists() else []
    return points


def head(table: Compared) -> tuple[str, str]:
    """The two lines above the rows of a table."""
    heads = [f"{WORDS[measure]}, {n} labelled" for measure, n in table.columns]
    names = ["method", "network", "study", "runs", *heads, "a step beside MAE's"]
    return "| " + " | ".join(names) + " |", "|" + "---|" * len(names)


def rows_of(
    table: Compared, study: str, reports: Mapping[str, Sequence[Mapping[str, Any]]], prices: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
    """A method's name with its row, for each method and network of a study of which no other has more runs."""
    for (method, network), runs in RUNS[study].items():
        if runs < max(RUNS[other].get((method, network), 0) for other in reports):
            continue
        recipe = METHODS[method, network].recipe
        own = differences(reports[study], table.metric, names(method, network, runs))
        cells = [shown(own.get(column)) for column in table.columns]
        measured = f"_{network}_" in recipe  # else it was measured on another network
        beside = f"{prices[recipe] / prices[METHODS['mae', network].recipe]:.1f}" if measured else "not measured"
        yield (
            method,
            f"| [{method}]({page(method)}.md) | {NETWORKS[network]} | [{study}](../results/{study}/README.md) | "
            f"{runs} | " + " | ".join(cells) + f" | {beside} |",
        )


def page(method: str) -> str:
    """Its page in docs/methods: that of a recipe of it, on whatever network."""
    return next(PAGES[found.recipe] for (name, _), found in METHODS.items() if name == method and found.recipe in PAGES)


def names(method: str, network: str, runs: int) -> Sequence[str]:
    """What a report may call it: by its task where it pools three runs or more, else by the run."""
    if runs < 3:
        return [f"{method}_{network}_0"]
    task = str(config.load(METHODS[method, network].recipe, unset=["data.store"]).task["_target_"])
    return [task.rpartition(".")[2]]


def differences(points: Sequence[Mapping[str, Any]], metric: str, arms: Sequence[str]) -> dict[Cell, Mapping[str, Any]]:
    """{(measure, labelled): difference to the arm without pre-training} of an arm.

    A report calls a method by its task and, beside another of that task, by what differs: "MAE, mask_ratio 0.6".
    """
    return {
        (point["measure"], point["n_labelled"]): point["difference"]
        for point in points
        if point["arm"].partition(", ")[0] in arms and point["metric"] == metric and point["difference"]
    }


def shown(found: Mapping[str, Any] | None) -> str:
    """A difference with its interval, bold where it is better, or that there is none."""
    if found is None:
        return "not run"
    if found["low"] is None:
        return f"{found['mean']:+.3f} (no interval)"
    one = Difference(found["mean"], found["low"], found["high"])
    return f"**{one}**" if one.verdict == "better" else str(one)
