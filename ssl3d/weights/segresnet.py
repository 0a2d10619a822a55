"""SegResNet as MONAI and its model zoo publish it."""

from __future__ import annotations

from ssl3d.models.backbone import BackboneSpec
from ssl3d.weights.recognised import Hints, Recognised, State, UnusableWeightsError, count, split

_STEM = "convInit.conv.weight"


def read(state: State, hints: Hints) -> Recognised | None:
    """Recognise by the names of its first convolution and down layers.

    Raises UnusableWeightsError: 2D, a width or number of blocks that SegResNet has not.
    """
    if _STEM not in state or "down_layers.0.1.conv1.conv.weight" not in state:
        return None
    stem = state[_STEM]
    filters = int(stem.shape[0])
    if stem.ndim != 5 or filters % 8 or "down_layers.0.1.norm1.weight" not in state:
        raise UnusableWeightsError(
            f"holds a SegResNet with {stem.ndim - 2}D convolutions and {filters} filters; one in 3D with group norm "
            "and a multiple of 8 filters is needed"
        )
    scales = count(state, r"down_layers\.(\d+)\.")
    down = [count(state, rf"down_layers\.{i}\.(\d+)\.conv1\.") - 1 for i in range(scales)]
    up = [count(state, rf"up_layers\.{i}\.(\d+)\.") for i in range(scales - 1)]
    kwargs = {
        "init_filters": filters,
        "in_channels": int(stem.shape[1]),
        "blocks_down": down,
        "blocks_up": [n or 1 for n in up],
        "upsample_mode": "deconv" if "up_samples.0.1.deconv.weight" in state else "nontrainable",
    }
    tensors, ignored = split(state, ("conv_final.2.", "vae_"))
    return Recognised(
        format="SegResNet (MONAI)",
        spec=BackboneSpec("ssl3d.models.segresnet.SegResNet", kwargs),
        tensors=tensors,
        ignored=ignored,
        missing={"": "the file holds no such layer"},
        channels=int(stem.shape[1]),
    )
