"""Weights for other programs: export(run, to, out). One file a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssl3d.export.report import ExportReport

TARGETS = ("nnunet", "safetensors")


def export(
    run: Path,
    to: str,
    out: Path,
    *,
    plans: Path | None = None,
    dataset_json: Path | None = None,
    in_channels: int | None = None,
    strict: bool = False,
) -> ExportReport:
    """Export the backbone of a run (or checkpoint file) to the folder `out` for the program `to`.

    `plans`, `dataset_json`, `in_channels`: see ssl3d.export.nnunet. `strict`: refuse what is not copied bit by bit.
    Raises ValueError naming the option, file or tensor that cannot be; FileNotFoundError when there is no such run.
    """
    if to not in TARGETS:
        raise ValueError(f"--to {to}: there is no export for '{to}'; available are {', '.join(TARGETS)}")
    given = {"--plans": plans, "--dataset-json": dataset_json, "--in-channels": in_channels}
    if to != "nnunet" and (useless := [name for name, value in given.items() if value is not None]):
        raise ValueError(f"{useless[0]} is for --to nnunet only; leave it out with --to {to}")

    from ssl3d.export.source import Source

    source = Source.open(Path(run))
    if to == "nnunet":
        from ssl3d.export.nnunet import export_nnunet

        return export_nnunet(
            source, Path(out), plans=plans, dataset_json=dataset_json, in_channels=in_channels, strict=strict
        )
    from ssl3d.export.safetensors import export_safetensors

    return export_safetensors(source, Path(out), strict=strict)
