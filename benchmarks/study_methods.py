"""All methods of the study beside each other: docs/methods/comparison.md, from docs/results/<study>/report.json.

Written by `benchmarks/study.py --only pages`; between its markers alone, what people wrote around them stays.
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
NETWORKS = {RESENC: "ResEnc", VIT: "ViT"}
PRICE = "time of plain"  # of a step, as bench_tasks.py calls it
PAGES = {entry.recipe: entry.page for entry in ENTRIES.values()}
Cell = tuple[str, int]  # a measure, and how many patients are labelled


@dataclass(frozen=True)
class Compared:
    """A table: studies on one data set, and of which measures at which amounts it has columns."""

    title: str
    studies: tuple[str, ...]
    metric: str
    columns: tuple[Cell, ...]


TABLES = (
    Compared("Hippocampus, Dice", ("hippocampus", "beyond"), "dice",
             (("probe", 1), ("probe", 4), ("probe", 16), ("finetune", 4))),
    Compared("Phantom, Dice", ("phantom",), "dice", (("probe", 1), ("probe", 4), ("probe", 16), ("finetune", 4))),
    Compared("Phantom pathology, AUROC", ("pathology",), "auroc",
             (("probe", 4), ("probe", 16), ("neighbours", 16), ("finetune", 16))),
)  # fmt: skip
# Measures of a study that another one repeated, which counts: larger windows than were trained on mixed something in.
INSTEAD = {("hippocampus", "finetune"): "matched"}
WORDS = {"probe": "linear probe", "neighbours": "nearest neighbours", "finetune": "fine-tuned"}


def write_comparison(docs: Path) -> None:
    """Write the tables into docs/methods/comparison.md; a study that was not run has none."""
    prices = {row["recipe"]: row[PRICE] for row in Kept.read(docs / "acceptance" / "learning.json").costs}
    parts = []
    for table in TABLES:
        found = {study: points for study in table.studies if (points := read(docs, study))}
        if found:
            parts += [f"## {table.title}", "\n".join(lines(table, found, prices))]
    insert(docs / "methods" / PAGE, "\n\n".join(parts), MAKER)


def read(docs: Path, study: str) -> list[dict[str, Any]]:
    """The points of a study's report, of the repeated measures those of the repetition; none where it was not run."""
    file = docs / "results" / study / "report.json"
    points = json.loads(file.read_text())["points"] if file.exists() else []
    again = {measure: other for (name, measure), other in INSTEAD.items() if name == study}
    own = [point for point in points if point["measure"] not in again]
    return own + [p for measure, other in again.items() for p in read(docs, other) if p["measure"] == measure]


def lines(
    table: Compared, reports: Mapping[str, Sequence[Mapping[str, Any]]], prices: Mapping[str, float]
) -> Iterator[str]:
    """A row a method and network of each study."""
    heads = [f"{WORDS[measure]}, {n} labelled" for measure, n in table.columns]
    yield "| " + " | ".join(["method", "network", "study", "runs", *heads, "a step beside MAE's"]) + " |"
    yield "|" + "---|" * (len(heads) + 5)
    for study, points in reports.items():
        for (method, network), runs in RUNS[study].items():
            recipe = METHODS[method, network].recipe
            own = differences(points, table.metric, names(method, network, runs))
            cells = [shown(own.get(column)) for column in table.columns]
            measured = f"_{network}_" in recipe  # else it was measured on another network
            beside = f"{prices[recipe] / prices[METHODS['mae', network].recipe]:.1f}" if measured else "not measured"
            yield (
                f"| [{method}]({page(method)}.md) | {NETWORKS[network]} | [{study}](../results/{study}/README.md) | "
                f"{runs} | " + " | ".join(cells) + f" | {beside} |"
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
