"""What is exported: a trained backbone and what is known of its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl3d.models.backbone import Backbone, BackboneSpec, build_backbone
from ssl3d.models.init import load_weights
from ssl3d.regions import Size3

if TYPE_CHECKING:
    from ssl3d.weights import Choices, ImportReport

# Keys of a checkpoint that travel with an export: no subject, file or path among them.
_PROVENANCE = ("step", "seen_digest", "spacing", "normalisation")


@dataclass
class Source:
    """A `backbone` and, where a run is behind it: whether its decoder was trained, the patch and batch it saw.

    `provenance`: plain types that travel with the weights; `seen_digest` is that of the run's seen.parquet, so that a
    moved file can still be checked for test patients. `run`: the run directory, where it was opened from one.
    `imported`: what became of every tensor, where the weights are those of another program.
    """

    backbone: Backbone
    trained_decoder: bool = True
    patch_size: Size3 | None = None
    batch_size: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    run: Path | None = None
    imported: ImportReport | None = None

    @classmethod
    def open(cls, run: Path, choices: Choices | None = None, strict: bool = False) -> Source:
        """The source of a run directory ('last'), a checkpoint or a weights file of another program.

        `choices`, `strict`: of the import (ssl3d.weights). Raises FileNotFoundError, ValueError naming the file.
        """
        from ssl3d import checkpoint

        if checkpoint.is_foreign(run):
            return cls.from_elsewhere(run, choices, strict)
        content = checkpoint.open_run(run)  # read once: with the optimiser's state it is four times the weights
        backbone = build_backbone(BackboneSpec(**content["backbone_spec"])).eval()
        load_weights(backbone, checkpoint.backbone_state(content), source=str(run))
        d, h, w = content.get("input_size") or (0, 0, 0)
        return cls(
            backbone=backbone,
            trained_decoder=bool(content.get("trained_decoder", True)),
            patch_size=(d, h, w) if d else None,
            batch_size=content.get("batch_size"),
            provenance=_provenance(content),
            run=run if run.is_dir() else None,
        )

    @classmethod
    def from_elsewhere(cls, file: Path, choices: Choices | None = None, strict: bool = False) -> Source:
        """The source of a weights file of another program. Raises FileNotFoundError, ValueError naming it."""
        from ssl3d.weights import import_weights

        backbone, report = import_weights(file, choices)
        if strict:
            report.refuse_inexact(f"'{file}'")
        size = getattr(backbone, "input_size", None)
        known = {key: value for key, value in report.provenance.items() if key in _PROVENANCE}
        about = {"format": report.format, "digest": report.digest, "summary": report.summary()}
        return cls(
            backbone=backbone,
            trained_decoder=report.share("decoder") > 0,
            patch_size=size,
            provenance={**known, "imported": about},
            imported=report,
        )


def _provenance(content: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: content[key] for key in _PROVENANCE if content.get(key) is not None}
    modalities = known.get("normalisation", {}).get("modalities")
    if modalities is not None:  # {modality: {store path: numbers}}: the paths stay at home
        numbers = {modality: list(stores.values()) for modality, stores in modalities.items()}
        known["normalisation"] = {**known["normalisation"], "modalities": numbers}
    return known
