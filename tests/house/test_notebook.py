"""docs/notebook.ipynb runs from its first cell to its last, and is kept without outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebook.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_outputs_are_stripped() -> None:
    assert len(CELLS) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path) -> None:
    code = "\n".join("".join(cell["source"]) for cell in CELLS)
    checks = "assert (work / 'weights' / 'HOW_TO.md').is_file()\nassert len(lines) == 8 and len(pictures) == 1\n"
    surroundings = os.environ | {"MPLBACKEND": "agg", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-"], input=f"{code}\n{checks}", cwd=tmp_path, env=surroundings, capture_output=True,
        text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
