"""How long finished cells took: OUT/cells/<key>.seconds, beside the scores and no part of them."""

from __future__ import annotations

from pathlib import Path

from downstream.results import CELLS
from ssl3d.files import write_text


def write_seconds(out: Path, key: str, seconds: float) -> None:
    """Note how long a finished cell took."""
    write_text(out / CELLS / f"{key}.seconds", f"{seconds:.3f}\n")


def read_seconds(out: Path, key: str) -> float | None:
    """How long a finished cell took; None where nobody noted it."""
    path = out / CELLS / f"{key}.seconds"
    return float(path.read_text()) if path.exists() else None
