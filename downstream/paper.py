"""OUT/paper: every figure of a report as PDF and SVG, every table as LaTeX and CSV, for use as they are."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

from downstream.blocks import Chart, Section, Table
from downstream.drawing import vector
from downstream.latex import latex
from downstream.results import write_atomic

PAPER = "paper"


def write_paper(folder: Path, sections: Sequence[Section]) -> list[Path]:
    """Write folder/paper anew; -> its files, in the order of the page. Equal results give equal bytes."""
    folder = folder / PAPER
    shutil.rmtree(folder, ignore_errors=True)
    written = []
    for block in (block for section in sections for block in section.blocks):
        files: dict[str, bytes] = {}
        if isinstance(block, Chart) and block.name:
            files = {kind: vector(block.figure, kind) for kind in ("pdf", "svg")}
        elif isinstance(block, Table) and block.name:
            files = {"tex": latex(block).encode(), "csv": _csv(block)}
        for kind, content in files.items():
            path = folder / f"{block.name}.{kind}"  # type: ignore[union-attr]
            write_atomic(path, content)
            written.append(path)
    return written


def _csv(table: Table) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows(table.rows)
    return buffer.getvalue().encode()
