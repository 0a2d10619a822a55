"""What a format's reader finds in a file: the backbone it fills, its tensors under our names, and what is left."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ssl3d.models.backbone import BackboneSpec
from ssl3d.models.transfer import MINIMUM
from ssl3d.regions import Size3

Inflation = Literal["mean", "centre", "rotation"]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Choices:
    """What a user may decide about an import.

    `trust`: unpickle any class, which runs code that the file names. `cast`: take other floating point types than
    float32. `inflate`: how 2D kernels fill 3D ones. `minimum`: share of the encoder's parameters that must be filled.
    """

    trust: bool = False
    cast: bool = False
    inflate: Inflation = "mean"
    minimum: float = MINIMUM


class UnusableWeightsError(ValueError):
    """The format is known, but weights like these fit no backbone; the message follows the file's name."""


@dataclass(frozen=True)
class Hints:
    """What a reader may look at besides the tensors.

    `content`: everything the file holds; `prefix`: what was taken off the names; `inflate`: how a 2D kernel fills 3D;
    `input_size`: voxels (D, H, W) that the model to be filled was made for, where there is one.
    """

    path: Path
    content: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    inflate: Inflation = "mean"
    input_size: Size3 | None = None


def grid_of(tokens: int, patch: Sequence[int], sizes: Sequence[Sequence[int] | None]) -> Size3 | None:
    """Tokens (D, H, W) of a table: of the first of `sizes` (voxels) that has as many, else of a cube, else None."""
    for size in sizes:
        if size is not None and len(size) == 3:
            d, h, w = (int(n) // p for n, p in zip(size, patch))
            if d * h * w == tokens:
                return (d, h, w)
    side = round(tokens ** (1 / 3))
    return (side, side, side) if side**3 == tokens else None


@dataclass
class Recognised:
    """Weights of a known layout.

    `format` in words; `spec` of the backbone they fill, with the file's image channels; `tensors` under the backbone's
    names; `adapted` {our name: how the value was changed}; `ignored` {the file's name: why}; `missing` {beginning of
    our name: why it will be fresh}; `notes`: what the user should know; `channels`: image channels of the file's stem;
    `grid`: tokens (D, H, W) of the position table; `seen`: digest of what our own training saw.
    """

    format: str
    spec: BackboneSpec
    tensors: dict[str, Tensor]
    adapted: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    channels: int = 1
    grid: Size3 | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


Reader = Callable[[State, Hints], Recognised | None]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers; NaN is the same as NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def split(
    state: State, head: str | tuple[str, ...], why: str = "a head, which no backbone has"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Part a state into what a backbone may use and {name: why} for names that begin with `head`."""
    used = {name: value for name, value in state.items() if not name.startswith(head)}
    return used, {name: why for name in state if name not in used}


def count(state: State, pattern: str) -> int:
    """How many different numbers stand in the group of `pattern` at the beginning of names: 0, 1, ..., n-1."""
    numbers = {int(found.group(1)) for name in state if (found := re.match(pattern, name))}
    return max(numbers) + 1 if numbers else 0
