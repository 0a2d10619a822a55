"""Weights to scores: label-efficiency curves and probes of pre-trained networks against scratch.

The functions the command line calls; their modules are imported when they are, since they are heavy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl3d.config import Overrides


def evaluate(
    runs: Sequence[str | Path],
    suite: str | Path | Mapping[str, Any],
    out: str | Path,
    overrides: Overrides = (),
    plan_only: bool = False,
) -> Path:
    """Judge runs or weights files by a suite against scratch; returns OUT/report.html (downstream.evaluator).

    `plan_only`: say what it would take instead; returns OUT/split.json.
    """
    from downstream import evaluator

    return evaluator.evaluate(runs, suite, out, overrides, plan_only)


def redraw(folders: Sequence[Path]) -> list[Path]:
    """Draw the reports of finished evaluations again (downstream.report)."""
    from downstream import report

    return report.redraw(folders)


def quickstart(out: Path | str, data: Path | str | None = None) -> Path:
    """The whole chain, on synthetic anatomy or a labelled data set; returns the report (downstream.chain)."""
    from downstream import chain

    return chain.quickstart(out, data)
