"""Bring trained weights into a backbone, tensor by tensor, and say what became of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ssl3d.models.backbone import Backbone
from ssl3d.models.transfer import Part, TensorOutcome, TransferReport


def aliases(module: torch.nn.Module) -> dict[str, list[str]]:
    """{name: all names in `state_dict()` of that tensor}, the first in definition order as key.

    nnU-Net registers each convolution and norm twice (`X.conv`, `X.all_modules.0`): both names are one tensor.
    """
    first: dict[int, str] = {}
    groups: dict[str, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        groups.setdefault(first.setdefault(id(tensor), name), []).append(name)
    return groups


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError naming the first tensor of `source` that holds NaN or Inf."""
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{source}: tensor '{name}' holds NaN or Inf, so these weights are of no use")


def load_weights(
    backbone: Backbone,
    state: Mapping[str, Tensor],
    strict: bool = True,
    part: Literal["all", "encoder"] = "all",
    source: str = "the weights",
) -> TransferReport:
    """Copy `state` into `backbone` by exact name and shape; nothing is changed when anything is refused.

    `strict`: every tensor of `part` must be found; otherwise what is missing stays as initialised, and is reported.
    `part`: 'encoder' leaves the decoder as it is. `source`: what errors call the weights.
    Raises ValueError naming the tensor: missing (strict), another shape, NaN or Inf, names of one tensor that differ.
    """
    check_finite(state, source)
    encoder = backbone.encoder_parameter_names()
    target = backbone.state_dict()
    report = TransferReport()
    copies: dict[str, Tensor] = {}
    known = set()
    for name, group in aliases(backbone).items():
        known.update(group)
        shape = tuple(target[name].shape)
        of: Part = "encoder" if name in encoder else "decoder"
        found = [alias for alias in group if alias in state]
        if part == "encoder" and name not in encoder:
            report.tensors.append(TensorOutcome(name, "fresh", shape, "only the encoder was asked for", of))
        elif not found:
            if strict:
                raise ValueError(f"{source}: there is no tensor '{name}', which this model needs")
            report.tensors.append(TensorOutcome(name, "fresh", shape, f"not in {source}", of))
        else:
            copies[name] = _one_value(state, found, shape, source)
            report.tensors.append(TensorOutcome(name, "copied", shape, part=of))
    if not copies:
        raise ValueError(f"{source}: none of the {len(state)} tensors has a name that this model knows")
    for name, value in state.items():
        if name not in known:
            report.tensors.append(TensorOutcome(name, "ignored", tuple(value.shape), "the model has no such tensor"))
    with torch.no_grad():
        for name, value in copies.items():
            target[name].copy_(value)
    return report


def _one_value(state: Mapping[str, Tensor], names: list[str], shape: tuple[int, ...], source: str) -> Tensor:
    """The value under all of `names`, which must agree and have `shape`."""
    for name in names:
        if tuple(state[name].shape) != shape:
            raise ValueError(f"{source}: tensor '{name}' is {tuple(state[name].shape)}, this model needs {shape}")
        if name != names[0] and not torch.equal(state[name], state[names[0]]):
            raise ValueError(f"{source}: '{names[0]}' and '{name}' are one tensor in this model but differ here")
    return state[names[0]]
