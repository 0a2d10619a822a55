"""What is exported: a trained backbone and what is known of its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl3d.models.backbone import Backbone, BackboneSpec, build_backbone
from ssl3d.models.init import load_weights
from ssl3d.regions import Size3

# Keys of a checkpoint that travel with an export: no subject, file or path among them.
_PROVENANCE = ("step", "seen_digest", "spacing", "normalisation")


@dataclass
class Source:
    """A `backbone` and, where a run is behind it: whether its decoder was trained, the patch and batch it saw.

    `provenance`: plain types that travel with the weights; `seen_digest` is that of the run's seen.parquet, so that a
    moved file can still be checked for test patients.
    """

    backbone: Backbone
    trained_decoder: bool = True
    patch_size: Size3 | None = None
    batch_size: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, run: Path) -> Source:
        """The source of a run directory ('last') or checkpoint file. Raises FileNotFoundError, ValueError naming it."""
        from ssl3d import checkpoint

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
        )


def _provenance(content: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: content[key] for key in _PROVENANCE if content.get(key) is not None}
    modalities = known.get("normalisation", {}).get("modalities")
    if modalities is not None:  # {modality: {store path: numbers}}: the paths stay at home
        numbers = {modality: list(stores.values()) for modality, stores in modalities.items()}
        known["normalisation"] = {**known["normalisation"], "modalities": numbers}
    return known
