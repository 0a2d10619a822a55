"""What an evaluation of the study found, as a folder of docs/results: tables, figures, the report, the compute used."""

from __future__ import annotations

import csv
import json
import lzma
import shutil
from pathlib import Path

from common import machine
from study_arms import arms

# Tables and figures of a report, in the order of a page: (beginning of their names, heading)
PARTS = (
    ("scores", "Scores and differences"),
    ("curve", "Curves"),
    ("learning_speed", "Learning speed"),
    ("labels_saved", "Labels saved"),
    ("calibration", "Calibration"),
    ("tests", "Tests"),
    ("pairs", "Arms against each other"),
    ("search", "What each arm was given"),
)
NUMBERS = "report.json"
SCORES = "results.csv"  # every score, of which only a compressed copy is small enough for a repository


def write_pages(name: str, out: Path, docs: Path) -> None:
    """Write docs/<name>/ from out/<name>/evaluation. Raises FileNotFoundError when there is no evaluation.

    The page of the report stays behind: it shows scans, which are kept out of the repository.
    """
    evaluation, folder = out / name / "evaluation", docs / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    report = json.loads((evaluation / NUMBERS).read_text())
    shutil.copy(evaluation / NUMBERS, folder / NUMBERS)
    scores = lzma.compress((evaluation / SCORES).read_bytes())
    (folder / f"{SCORES}.xz").write_bytes(scores)
    where = machine()
    lines = [
        f"# {report['title']}", "",
        f"Made by `python benchmarks/study.py --data {name}` after [the protocol](../protocol.md); "
        f"{where['cores']} x {where['cpu']}, one thread a process, torch {where['versions']['torch']}. "
        f"All numbers of its report: [{NUMBERS}]({NUMBERS}); every score: [{SCORES}.xz]({SCORES}.xz), for "
        f"pandas.read_csv; the suite: recipes/downstream/study_{name}.yaml; what was trained: "
        "benchmarks/study_arms.py.",
        "", "## What can be concluded", "", *(f"- {sentence}" for sentence in report["conclusions"]),
    ]  # fmt: skip
    paper = sorted((evaluation / "paper").iterdir())
    for beginning, heading in PARTS:
        parts = [file for file in paper if file.name.startswith(beginning) and file.suffix in (".csv", ".svg")]
        if parts:
            lines += ["", f"## {heading}"]
        for file in parts:
            if file.suffix == ".svg":
                shutil.copy(file, folder / file.name)
                lines += ["", f"![{file.stem}]({file.name})"]
            else:
                lines += ["", f"`{file.stem}`", "", *markdown(file)]
    lines += ["", "## Compute", "", *compute(name, out), ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def markdown(table: Path) -> list[str]:
    """A CSV file as the lines of a Markdown table."""
    with table.open(newline="") as file:
        head, *rows = [[cell.replace("|", "/") for cell in row] for row in csv.reader(file)]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def compute(name: str, out: Path) -> list[str]:
    """Steps and hours of each pre-training run, and of all cells of the evaluation, as they were measured."""
    lines = ["| run | steps | last loss | minutes |", "|---|---|---|---|"]
    total = 0.0
    for arm in arms(name):
        logged = [json.loads(line) for line in (out / arm.data / arm.name / "metrics.jsonl").read_text().splitlines()]
        steps = [entry for entry in logged if "time/step" in entry]
        ends = [0, *(entry["step"] for entry in steps)]
        seconds = sum((b - a) * entry["time/step"] for a, b, entry in zip(ends, ends[1:], steps))
        lines.append(f"| {arm.name} | {steps[-1]['step']} | {steps[-1]['loss']:.3g} | {seconds / 60:.1f} |")
        total += seconds
    cells = [float(file.read_text()) for file in (out / name / "evaluation" / "cells").glob("*.seconds")]
    lines += ["", f"Pre-training took {total / 3600:.1f} process hours, the {len(cells)} cells of the evaluation "]
    lines[-1] += f"{sum(cells) / 3600:.2g}; two processes ran at a time."
    return lines
