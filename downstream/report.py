"""report.html: the result of an evaluation on one page, every number of it from results.csv; and its redrawing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from downstream import curve, page, runs, sections, sentences
from downstream.comparison import Point, Trial, compare, search
from downstream.evaluation import Evaluation, is_evaluation, load_evaluation, merge
from downstream.results import write_atomic

REPORT, CURVE, SUMMARY = "report.html", "curve.png", "summary.json"
COMPARISON = "comparison"  # folder of a merged report, inside the first directory


def write_report(out: Path) -> Path:
    """Draw OUT/report.html, curve.png and summary.json from what lies in OUT; returns the path of the page.

    Raises FileNotFoundError or ValueError naming the file when OUT holds no finished evaluation.
    """
    out = Path(out)
    return _write(load_evaluation(out), out)


def redraw(directories: Sequence[Path]) -> list[Path]:
    """Redraw the reports of evaluations and runs; of several of a kind also a comparison. -> pages written.

    One directory gets its page; several evaluations also a merged page in FIRST/comparison, several runs one page with
    all their curves in FIRST/comparison. Raises ValueError naming the first difference when evaluations do not measure
    the same, FileNotFoundError for a directory that is neither. Nothing is written before all of this is checked.
    """
    directories = [Path(d) for d in directories]
    for directory in directories:
        if not is_evaluation(directory) and not runs.is_run(directory):
            raise FileNotFoundError(
                f"{directory} is neither an evaluation (no results.csv) nor a run (no metrics.jsonl): "
                "give a directory written by ssl3d evaluate or ssl3d train"
            )
    evaluations = [load_evaluation(d) for d in directories if is_evaluation(d)]
    trainings = [runs.load_run(d) for d in directories if not is_evaluation(d)]
    merged = merge(evaluations) if len(evaluations) > 1 else None
    written = [_write(evaluation, evaluation.directory) for evaluation in evaluations]
    if merged is not None:
        written.append(_write(merged, merged.directory / COMPARISON))
    written += [runs.write_page([training], training.directory) for training in trainings]
    if len(trainings) > 1:
        written.append(runs.write_page(trainings, trainings[0].directory / COMPARISON))
    return written


def _write(evaluation: Evaluation, folder: Path) -> Path:
    points = compare(evaluation.results, evaluation.baselines)
    trials = search(evaluation.results)
    pictures, shown = sections.cases(evaluation, points)
    body = [
        *sections.head(evaluation, points),
        *sections.figure(points),
        *sections.words(points),
        *sections.numbers(points),
        *sections.tuning(trials),
        *pictures,
        *sections.design(evaluation, points, trials),
        *sections.limits(evaluation, points),
        *sections.guard(evaluation),
        *sections.provenance(evaluation),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    curve.save(curve.draw(points), folder / CURVE)
    summary = json.dumps(_plain(summarise(evaluation, points, trials, shown)), indent=1)
    write_atomic(folder / SUMMARY, (summary + "\n").encode())
    write_atomic(folder / REPORT, page.page(sections.title(evaluation), body).encode())
    return folder / REPORT


def summarise(
    evaluation: Evaluation, points: Sequence[Point], trials: Sequence[Trial], cases: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Every number and conclusion of the page as plain data."""
    groups = sections.by_arm(points).values()
    return {
        "title": sections.title(evaluation),
        "conclusions": sections.conclusions(points),
        "joint": [text for group in groups if (text := sentences.joint_statement(group))],
        "points": [_point(point) for point in points],
        "search": [dataclasses.asdict(trial) for trial in trials],
        "cases": list(cases),
        "warnings": list(evaluation.warnings),
    }


def _point(point: Point) -> dict[str, Any]:
    compared = point.difference is not None
    words = {"verdict": point.verdict(), "sentence": sentences.sentence(point)} if compared else {}
    return dataclasses.asdict(point) | words


def _plain(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
