"""Fill a backbone from recognised weights, tensor by tensor, and refuse what would not be the pre-trained network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ssl3d.models.backbone import Backbone, resize_positions
from ssl3d.models.dino_vit import DinoViT
from ssl3d.models.init import match_tensors, put_tensors
from ssl3d.models.primus import Primus
from ssl3d.models.transfer import MINIMUM, TransferReport
from ssl3d.weights.inflate import channels
from ssl3d.weights.recognised import Recognised, same

_POSITIONS = ("eva.pos_embed", "vit.pos_embed")
_LISTED = 6


@dataclass
class ImportReport(TransferReport):
    """A TransferReport with the file's name and `digest`, its `format`, the `backbone` filled, and `notes`."""

    source: str = ""
    digest: str = ""
    format: str = ""
    backbone: str = ""
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """A few plain lines for the terminal."""
        lines = [f"{self.source}: {self.format} into {self.backbone}: {self.summary()}", f"  {self.shares()}"]
        reasons: dict[tuple[str, str], list[str]] = {}
        for t in self.tensors:
            if t.outcome != "copied":
                reasons.setdefault((t.outcome, t.reason), []).append(t.name)
        for (outcome, reason), names in list(reasons.items())[:_LISTED]:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"  {outcome} {names[0]}{more}: {reason}")
        if len(reasons) > _LISTED:
            lines.append(f"  and {len(reasons) - _LISTED} more reasons, which the JSON report lists")
        return "\n".join(lines + [f"  {note}" for note in self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Plain types; the file by its digest, as a path says who had it."""
        named = {key: getattr(self, key) for key in ("digest", "format", "backbone", "notes", "provenance")}
        return {**named, **super().to_dict()}


def fill(
    backbone: Backbone,
    found: Recognised,
    source: str,
    part: Literal["all", "encoder"] = "all",
    minimum: float = MINIMUM,
    cast: bool = False,
) -> ImportReport:
    """Copy recognised tensors into `backbone`; nothing is changed when anything is refused.

    A stem for another number of image channels and a position table for another grid are adapted; every other shape
    must be equal. `part`: 'encoder' leaves the decoder as it is. `minimum`: share of the encoder's parameters that
    must be filled. `cast`: take other floating point types and convert them to float32.
    Raises ValueError, one sentence that begins with `source`: another network, shape or type, NaN, too little.
    """
    _refuse_other_network(backbone, found, source)
    report = ImportReport(
        source=source, format=found.format, backbone=type(backbone).__name__, notes=list(found.notes),
        provenance=found.provenance,
    )  # fmt: skip

    def take(name: str, names: list[str], target: Tensor) -> tuple[Tensor, str]:
        value, converted = _one_value(found.tensors, names, target.dtype, source, cast)
        value, fitted = _fit(value, name, tuple(target.shape), backbone, found, source)
        return value, "; ".join(text for text in (converted, found.adapted.get(names[0], ""), fitted) if text)

    def missing(name: str) -> str:
        return _why_missing(name, found)

    values = match_tensors(backbone, found.tensors, report, part, take, missing, found.ignored)
    report.refuse_below(minimum, source)
    put_tensors(backbone, values)
    return report


def _refuse_other_network(backbone: Backbone, found: Recognised, source: str) -> None:
    mine = type(backbone)
    name = found.spec.target.rpartition(".")[2]
    if mine.__name__ != name:
        arguments = ", ".join(f"{k}={v}" for k, v in found.spec.kwargs.items() if k != "arch_kwargs")
        raise ValueError(
            f"{source} holds weights of a {name} ({found.format}), the model is a {mine.__name__}: set "
            f"model._target_={found.spec.target} ({arguments})"
        )


def _why_missing(name: str, found: Recognised) -> str:
    for head, why in found.missing.items():
        if name.startswith(head):
            return why
    return "the file holds no such tensor"


def _one_value(
    tensors: Mapping[str, Tensor], names: list[str], wanted: torch.dtype, source: str, cast: bool
) -> tuple[Tensor, str]:
    """The value under all of `names`, which must agree, as the model's type; and how it was converted."""
    first = tensors[names[0]]
    if first.layout != torch.strided or first.is_quantized:
        raise ValueError(f"{source}: tensor '{names[0]}' is quantised or sparse, not a plain array of numbers")
    if first.dtype != wanted:
        floating = first.is_floating_point() and wanted.is_floating_point
        if not floating or first.element_size() == 1:
            raise ValueError(f"{source}: tensor '{names[0]}' is {_word(first.dtype)}, this model needs {_word(wanted)}")
        if not cast:
            raise ValueError(
                f"{source}: tensor '{names[0]}' is {_word(first.dtype)}, not {_word(wanted)}: ask for the original "
                "file, or take it as it is with --cast (model.init_cast=true in a recipe)"
            )
    for name in names[1:]:
        if not same(tensors[name], first):
            raise ValueError(f"{source}: '{names[0]}' and '{name}' are one tensor in this model but differ in the file")
    if first.is_floating_point() and not bool(torch.isfinite(first).all()):
        raise ValueError(f"{source}: tensor '{names[0]}' holds NaN or Inf, so these weights are of no use")
    if first.dtype == wanted:
        return first, ""
    return first.to(wanted), f"{_word(first.dtype)} converted to {_word(wanted)}"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fit(
    value: Tensor, name: str, shape: tuple[int, ...], backbone: Backbone, found: Recognised, source: str
) -> tuple[Tensor, str]:
    """A value in the model's shape, and how it was brought there. Raises ValueError when it cannot be."""
    if tuple(value.shape) == shape:
        return value, ""
    others = (*value.shape[:1], *value.shape[2:]) == (*shape[:1], *shape[2:])
    if (
        len(shape) == value.ndim == 5
        and others
        and (value.shape[1], shape[1]) == (found.channels, backbone.in_channels)
    ):
        return channels(value, shape[1]), f"{value.shape[1]} image channels to {shape[1]} (their sum / {shape[1]})"
    if name in _POSITIONS and found.grid is not None and value.shape[2] == shape[2]:
        assert isinstance(backbone, (Primus, DinoViT))
        grid = backbone.grid(backbone.input_size)
        return resize_positions(value, found.grid, grid), (
            f"positions of {list(found.grid)} tokens resized to {list(grid)} (trilinear)"
        )
    raise ValueError(
        f"{source}: tensor '{name}' is {tuple(value.shape)}, this model needs {shape}: {_difference(backbone, found)}"
    )


def _difference(backbone: Backbone, found: Recognised) -> str:
    """The first argument in which the file's network is not the model, in words."""

    def flat(kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {**kwargs, **(kwargs.get("arch_kwargs") or {})}

    theirs = flat(found.spec.kwargs)
    mine = flat(backbone.spec().kwargs) | dict(getattr(backbone, "arch_kwargs", {}))
    for key, value in theirs.items():
        if key in mine and key not in ("size", "arch_kwargs") and _listed(mine[key]) != _listed(value):
            return f"its {key} is {value}, the model's {mine[key]}"
    return f"its size is {theirs.get('size')}, the model's {mine.get('size')}"


def _listed(value: Any) -> Any:
    """Tuples as lists, at every depth."""
    return [_listed(v) for v in value] if isinstance(value, (list, tuple)) else value
