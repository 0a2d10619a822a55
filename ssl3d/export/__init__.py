"""Weights for other programs: export(run, to, out). One file a target."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ssl3d.export.report import ExportReport

# Options of `ssl3d export` that a target has of its own.
TARGETS: dict[str, tuple[str, ...]] = {
    "nnunet": ("plans", "dataset_json", "in_channels", "architecture", "minimum"),
    "nnssl": (),
    "safetensors": (),
}


def export(
    run: Path,
    to: str,
    out: Path,
    *,
    plans: Path | None = None,
    dataset_json: Path | None = None,
    in_channels: int | None = None,
    architecture: Literal["own", "planned"] | None = None,
    minimum: float | None = None,
    strict: bool = False,
) -> ExportReport:
    """Export the backbone of a run (or weights file) to the folder `out` for the program `to`, a key of TARGETS.

    The options are those of the target's own function (`export_nnunet`, ...); one that it has not is refused.
    `strict`: refuse what is not copied bit by bit.
    Raises ValueError naming the option, file or tensor that cannot be; FileNotFoundError when there is no such run.
    """
    if to not in TARGETS:
        raise ValueError(f"--to {to}: there is no export for '{to}'; available are {', '.join(TARGETS)}")
    given = {
        "plans": plans,
        "dataset_json": dataset_json,
        "in_channels": in_channels,
        "architecture": architecture,
        "minimum": minimum,
    }
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if name not in TARGETS[to]:
            users = " and ".join(f"--to {target}" for target, own in TARGETS.items() if name in own)
            raise ValueError(f"--{name.replace('_', '-')} is for {users} only; leave it out with --to {to}")
    if minimum is not None and not 0 <= minimum <= 1:
        raise ValueError(f"--minimum is {minimum:g}; it is a share, from 0 to 1")

    from ssl3d.export.source import Source

    module = importlib.import_module(f"ssl3d.export.{to}")  # only now: torch and the networks take seconds to load
    write = getattr(module, f"export_{to}")
    return write(Source.open(Path(run)), Path(out), strict=strict, **options)
