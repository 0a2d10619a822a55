"""STU-Net, as its nnU-Net v1 (`state_dict`) and v2 (`network_weights`) trainers saved it."""

from __future__ import annotations

from collections.abc import Mapping

from ssl3d.models.backbone import BackboneSpec
from ssl3d.models.stunet import SIZES
from ssl3d.weights.nnunet import plans_of
from ssl3d.weights.recognised import Hints, Recognised, State, UnusableWeightsError, count, split

_STEM = "conv_blocks_context.0.0.conv1.weight"


def read(state: State, hints: Hints) -> Recognised | None:
    """Recognise by the names of its residual blocks; strides come from the file's plans, else are all 2.

    Raises UnusableWeightsError: nnU-Net v1's own network, a width or depth that no size has.
    """
    if "conv_blocks_context.0.blocks.0.conv.weight" in state:
        raise UnusableWeightsError("holds nnU-Net v1's Generic_UNet, which no backbone is: train it with nnU-Net v2")
    if _STEM not in state:
        return None
    stem = state[_STEM]
    made = (int(stem.shape[0]), count(state, r"conv_blocks_context\.0\.(\d+)\."))
    size = next((name for name, value in SIZES.items() if value == made), None)
    stages = count(state, r"conv_blocks_context\.(\d+)\.")
    if size is None or stages != 6 or stem.ndim != 5:
        raise UnusableWeightsError(
            f"holds a STU-Net of {stages} stages, {made[0]} features and {made[1]} blocks a stage; known are 6 stages "
            f"and {', '.join(f'{f}/{d} ({name})' for name, (f, d) in SIZES.items())}"
        )
    planned = (plans_of(hints.content) or {}).get("strides")
    strides, notes = None, ["its strides are assumed to be 2: no plans are in the file"]
    if planned is not None:
        steps = [[s] * 3 if isinstance(s, int) else list(s) for s in planned[1:]]
        steps += [[1, 1, 1]] * (5 - len(steps))  # STU-Net pads the plan's strides with 1s
        strides, notes = (None if steps == [[2, 2, 2]] * 5 else steps), []
    tensors, ignored = split(state, "seg_outputs.")
    version = "v2" if isinstance(hints.content, Mapping) and "network_weights" in hints.content else "v1"
    kwargs = {"size": size, "in_channels": int(stem.shape[1]), "strides": strides}
    return Recognised(
        format=f"STU-Net {size} (nnU-Net {version})",
        spec=BackboneSpec("ssl3d.models.stunet.STUNet", kwargs),
        tensors=tensors,
        ignored=ignored,
        notes=notes,
        channels=int(stem.shape[1]),
        missing={"": "the file holds no such layer"},
    )
