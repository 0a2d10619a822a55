"""Weights for other programs: export(run, to, out). One file a target."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssl3d.known_warnings import hide_known_warnings

if TYPE_CHECKING:
    from ssl3d.export.report import ExportReport

# Options of `ssl3d export` that a target has of its own.
TARGETS: dict[str, tuple[str, ...]] = {
    "nnunet": ("plans", "dataset_json", "in_channels", "architecture", "minimum"),
    "nnssl": (),
    "monai": ("dataset_json", "in_channels"),
    "onnx": (),
    "torch_export": (),
    "hub": (),
    "safetensors": (),
}


def export(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    plans: str | Path | None = None,
    dataset_json: str | Path | None = None,
    in_channels: int | None = None,
    architecture: Literal["own", "planned"] | None = None,
    minimum: float | None = None,
    inflate: Literal["mean", "centre", "rotation"] | None = None,
    cast: bool = False,
    trust: bool = False,
    strict: bool = False,
) -> ExportReport:
    """Export the backbone of a run (or weights file) to the folder `out` for the program `to`, a key of TARGETS.

    Returns what became of each tensor, and the files that were written; a run that wandb follows notes the export.
    The options are those of the target's own function (`export_nnunet`, ...); one that it has not is refused.
    `inflate`, `cast`, `trust` (and `minimum`) decide how a weights file of another program is read (ssl3d.weights).
    `strict`: refuse what is not copied bit by bit. An earlier export to `to` in `out` is replaced; other files stay.
    Raises ValueError naming the option, file or tensor that cannot be; FileNotFoundError when there is no such run.
    """
    hide_known_warnings()
    from ssl3d.checkpoint import is_foreign
    from ssl3d.export.folder import check_folder
    from ssl3d.models.transfer import MINIMUM
    from ssl3d.trackers.wandb import log_export

    given = {
        "plans": None if plans is None else Path(plans),
        "dataset_json": None if dataset_json is None else Path(dataset_json),
        "in_channels": in_channels,
        "architecture": architecture,
        "minimum": minimum,
    }
    options = {name: value for name, value in given.items() if value is not None}
    run = Path(run)
    reading = [name for name, value in (("inflate", inflate), ("cast", cast), ("trust", trust)) if value]
    _check(run, to, options, reading, is_foreign(run))
    check_folder(Path(out), to)

    from ssl3d.export.source import Source
    from ssl3d.weights.recognised import Choices

    read = Choices(trust, cast, inflate or "mean", MINIMUM if minimum is None else minimum)
    if "minimum" not in TARGETS[to]:
        options.pop("minimum", None)
    source = Source.open(run, read, strict)
    module = importlib.import_module(f"ssl3d.export.{to}")  # only now: torch and the networks take seconds to load
    write = getattr(module, f"export_{to}")
    report: ExportReport = write(source, Path(out), strict=strict, **options)
    log_export(run, report)
    return report


def _check(run: Path, to: str, options: dict[str, Any], reading: list[str], foreign: bool) -> None:
    """Raises ValueError for a target that is none, or an option that it, or this kind of weights, does not take."""
    if to not in TARGETS:
        raise ValueError(f"--to {to}: there is no export for '{to}'; available are {', '.join(TARGETS)}")
    if not foreign and reading:
        raise ValueError(f"--{reading[0]} is for weights files of other programs; leave it out with '{run}'")
    for name in options:
        if name not in TARGETS[to] and not (name == "minimum" and foreign):
            users = " and ".join(f"--to {target}" for target, own in TARGETS.items() if name in own)
            raise ValueError(f"--{name.replace('_', '-')} is for {users} only; leave it out with --to {to}")
    if not 0 <= (share := options.get("minimum", 0)) <= 1:
        raise ValueError(f"--minimum is {share:g}; it is a share, from 0 to 1")
