"""Weights of ssl3d itself: a run, one of its checkpoints, an exported file with or without what says its network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl3d import checkpoint
from ssl3d.models.backbone import BackboneSpec
from ssl3d.weights.container import digest
from ssl3d.weights.recognised import Hints, Recognised, State, UnusableWeightsError

_KEPT = ("step", "seen_digest", "trained_decoder")


def read_run(path: Path) -> tuple[Recognised, str]:
    """The exported weights of a run or checkpoint, and the digest of its file.

    Raises FileNotFoundError, ValueError naming it.
    """
    content = checkpoint.open_run(path)
    spec = BackboneSpec(**content["backbone_spec"])
    trained = bool(content.get("trained_decoder", True))
    found = Recognised(
        format="ssl3d run",
        spec=spec,
        tensors=checkpoint.backbone_state(content),
        notes=[] if trained else ["its decoder is as it was initialised: the run trained the encoder only"],
        channels=int(spec.kwargs.get("in_channels", 1)),
        provenance={key: content[key] for key in _KEPT if key in content},
    )
    file = path / checkpoint.FOLDER / checkpoint.LAST if path.is_dir() else path
    return found, digest(file) if file.is_file() else ""


def from_sidecar(sidecar: Mapping[str, Any], state: State) -> Recognised:
    """What ssl3d exported as safetensors says itself which network it fills.

    Raises UnusableWeightsError when that is no class of ssl3d.models: a file must not choose what is imported.
    """
    said = sidecar["backbone"]
    target, kwargs = str(said.get("target")), said.get("kwargs")
    if not target.startswith("ssl3d.models.") or not isinstance(kwargs, dict):
        raise UnusableWeightsError(f"says that it fills '{target}', which is none of ssl3d.models: name the run itself")
    spec = BackboneSpec(target, kwargs)
    return Recognised(
        format="ssl3d",
        spec=spec,
        tensors=dict(state),
        channels=int(spec.kwargs.get("in_channels", 1)),
        missing={"": "its run did not train it"},
        provenance=dict(sidecar.get("provenance") or {}),
    )


def read(state: State, hints: Hints) -> Recognised | None:
    """Recognise the names of networks whose shapes leave something open.

    Raises UnusableWeightsError: always, when it does; the remedy is in the message.
    """
    if "layers.0.qkv.weight" in state and "patch_embed.weight" in state:
        raise UnusableWeightsError(
            "holds a ViT of ssl3d without the .json beside it that says which: copy it here too, or name the run"
        )
    return None
