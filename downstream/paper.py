"""OUT/paper: every figure of a report as PDF and SVG, every table as LaTeX and CSV, for use as they are."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

from downstream.blocks import Chart, Html, Section, Table
from downstream.drawing import pdf
from downstream.latex import latex
from ssl3d.files import write_bytes

PAPER = "paper"


def write_paper(folder: Path, sections: Sequence[Section]) -> list[Path]:
    """Write folder/paper anew; -> its files, in the order of the page. Equal results give equal bytes."""
    folder = folder / PAPER
    shutil.rmtree(folder, ignore_errors=True)
    written = []
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Html) or not block.name:
            continue
        if isinstance(block, Chart):
            files = {"svg": block.svg.encode(), "pdf": pdf(block.figure)}
        else:
            files = {"tex": latex(block).encode(), "csv": _csv(block)}
        for kind, content in files.items():
            path = folder / f"{block.name}.{kind}"
            write_bytes(path, content)
            written.append(path)
    return written


def _csv(table: Table) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows(table.rows)
    return buffer.getvalue().encode()
