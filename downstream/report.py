"""report.html: the result of an evaluation on one page, every number of it from results.csv; and its redrawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from downstream import curve, drawing, page, runs
from downstream.blocks import Section
from downstream.evaluation import Evaluation, is_evaluation, load_evaluation
from downstream.merging import merge_by_dataset
from downstream.paper import write_paper
from downstream.sections import of_evaluation, of_several, title, title_of_several
from downstream.sections.view import View, view
from ssl3d.files import write_json, write_text

REPORT, CURVE, DATA = "report.html", "curve.png", "report.json"
COMPARISON = "comparison"  # folder of a merged report, inside the first directory


def write_report(out: Path) -> Path:
    """Draw OUT/report.html, report.json, curve.png and OUT/paper from what lies in OUT; returns the path of the page.

    Raises FileNotFoundError or ValueError naming the file when OUT holds no finished evaluation.
    """
    out = Path(out)
    return _write([load_evaluation(out)], out)


def redraw(directories: Sequence[Path]) -> list[Path]:
    """Redraw the reports of evaluations and runs; of several of a kind also a comparison. -> pages written.

    One directory gets its page; several evaluations also a page in FIRST/comparison: those of one data set merged into
    one comparison, several data sets side by side. Several runs get one page with all their curves in FIRST/comparison.
    Raises ValueError naming the first difference when evaluations of a data set do not measure the same, or a
    directory that is given twice, FileNotFoundError for a directory that is neither. Nothing is written before all of
    this is checked.
    """
    directories = [Path(d) for d in directories]
    for i, directory in enumerate(directories):
        if directory.resolve() in {d.resolve() for d in directories[:i]}:
            raise ValueError(f"{directory} is given twice: nothing is compared with itself, so name it once")
        if not is_evaluation(directory) and not runs.is_run(directory):
            raise FileNotFoundError(
                f"{directory} is neither an evaluation (no results.csv) nor a run (no metrics.jsonl): "
                "give a directory written by ssl3d evaluate or ssl3d train"
            )
    evaluations = [load_evaluation(d) for d in directories if is_evaluation(d)]
    trainings = [runs.load_run(d) for d in directories if not is_evaluation(d)]
    merged = merge_by_dataset(evaluations) if len(evaluations) > 1 else []
    written = [_write([evaluation], evaluation.directory) for evaluation in evaluations]
    if merged:
        written.append(_write(merged, merged[0].directory / COMPARISON))
    written += [runs.write_page([training], training.directory) for training in trainings]
    if len(trainings) > 1:
        written.append(runs.write_page(trainings, trainings[0].directory / COMPARISON))
    return written


def _write(evaluations: Sequence[Evaluation], folder: Path) -> Path:
    """The report of one evaluation, or of several data sets side by side."""
    views = [view(evaluation, evaluations) for evaluation in evaluations]
    several = len(views) > 1
    sections = of_several(views) if several else of_evaluation(views[0])
    name = title_of_several(views) if several else title(evaluations[0])
    folder.mkdir(parents=True, exist_ok=True)
    drawing.save(_overview(views), folder / CURVE)
    write_paper(folder, sections)
    write_json(folder / DATA, _plain(_data(sections)), indent=1)
    write_text(folder / REPORT, page.page(name, sections))
    return folder / REPORT


def _overview(views: Sequence[View]) -> Any:
    """All curves of the first data set."""
    return curve.draw(views[0], views[0].measures)


def _data(sections: Sequence[Section]) -> dict[str, Any]:
    """Every number and sentence of the page as plain data."""
    found: dict[str, Any] = {}
    for section in sections:
        twice = found.keys() & section.data.keys()
        assert not twice, f"two sections of a report say {twice}"
        found |= section.data
    return found


def _plain(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
