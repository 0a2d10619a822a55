"""The 3D U-Net of Models Genesis and of SuPreM."""

from __future__ import annotations

from ssl3d.models.backbone import BackboneSpec
from ssl3d.weights.recognised import Hints, Recognised, State, split

_STEM = "down_tr64.ops.0.conv1.weight"


def read(state: State, hints: Hints) -> Recognised | None:
    """Recognise by the names of its transitions, whatever the width."""
    if _STEM not in state:
        return None
    stem = state[_STEM]
    tensors, ignored = split(state, "out_tr.")
    kwargs = {"in_channels": int(stem.shape[1]), "width": int(stem.shape[0])}
    return Recognised(
        format="3D U-Net (Models Genesis, SuPreM)",
        spec=BackboneSpec("ssl3d.models.unet3d.UNet3D", kwargs),
        tensors=tensors,
        ignored=ignored,
        notes=["its batch norms use their running statistics, the published code each batch's own"],
        missing={"": "the file holds no such layer"},
        channels=int(stem.shape[1]),
    )
