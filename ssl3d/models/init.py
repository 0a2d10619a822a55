"""Bring trained weights into a backbone, tensor by tensor, and say what became of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    def missing(name: str) -> str:
        if strict:
            raise ValueError(f"{source}: there is no tensor '{name}', which this model needs")
        return f"not in {source}"

    report = TransferReport()
    values = match_tensors(
        backbone, state, report, part, lambda _, names, target: (_one_value(state, names, target, source), ""), missing
    )
    if not values:
        raise ValueError(f"{source}: none of the {len(state)} tensors has a name that this model knows")
    put_tensors(backbone, values)
    return report


def match_tensors(
    backbone: Backbone,
    state: Mapping[str, Tensor],
    report: TransferReport,
    part: Literal["all", "encoder"],
    take: Callable[[str, list[str], Tensor], tuple[Tensor, str]],
    missing: Callable[[str], str],
    ignored: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """{name: value} of what `state` has for `backbone`, in which nothing is changed yet; `report` gets every outcome.

    `take(name, names, target)` gives the value that `state` has under `names` for the tensor `target`, and how it was
    adapted ("" where it was not); `missing(name)` why there is none. Either may raise. `ignored`: names that are left
    out, `state` may have them or not, and why.
    """
    encoder, target = backbone.encoder_parameter_names(), backbone.state_dict()
    values: dict[str, Tensor] = {}
    known: set[str] = set()
    for name, names in aliases(backbone).items():
        known.update(names)
        shape = tuple(target[name].shape)
        of: Part = "encoder" if name in encoder else "decoder"
        found = [alias for alias in names if alias in state]
        if part == "encoder" and of == "decoder":
            report.tensors.append(TensorOutcome(name, "fresh", shape, "only the encoder was asked for", of))
        elif not found:
            report.tensors.append(TensorOutcome(name, "fresh", shape, missing(name), of))
        else:
            values[name], how = take(name, found, target[name])
            report.tensors.append(TensorOutcome(name, "adapted" if how else "copied", shape, how, of))
    left = {name: "the model has no such tensor" for name in state if name not in known} | dict(ignored or {})
    for name, why in left.items():
        shape = tuple(state[name].shape) if name in state else ()
        report.tensors.append(TensorOutcome(name, "ignored", shape, why, "head"))
    return values


def put_tensors(backbone: Backbone, values: Mapping[str, Tensor]) -> None:
    """Copy values into the backbone's tensors of these names."""
    target = backbone.state_dict()
    with torch.no_grad():
        for name, value in values.items():
            target[name].copy_(value)


def _one_value(state: Mapping[str, Tensor], names: list[str], target: Tensor, source: str) -> Tensor:
    """The value under all of `names`, which must agree and have the shape of `target`."""
    for name in names:
        if state[name].shape != target.shape:
            shapes = f"{tuple(state[name].shape)}, this model needs {tuple(target.shape)}"
            raise ValueError(f"{source}: tensor '{name}' is {shapes}")
        if name != names[0] and not torch.equal(state[name], state[names[0]]):
            raise ValueError(f"{source}: '{names[0]}' and '{name}' are one tensor in this model but differ here")
    return state[names[0]]
