"""Which format a file is: its content is asked, never its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl3d import checkpoint
from ssl3d.regions import Size3
from ssl3d.weights import nnunet, own, primus, resnet, segresnet, stunet, swin, unet3d, vit
from ssl3d.weights.container import Container, open_container, read_sidecar
from ssl3d.weights.recognised import Hints, Inflation, Reader, Recognised, State, UnusableWeightsError
from ssl3d.weights.unwrap import states, views

_READERS: tuple[Reader, ...] = (
    nnunet.read, primus.read, stunet.read, swin.read, segresnet.read, unet3d.read, vit.read, resnet.read, own.read,
)  # fmt: skip
_FORMATS = (
    "nnU-Net and nnssl (ResEnc, PlainConv, Primus), STU-Net, Swin UNETR (MONAI, VoCo, SuPreM), SegResNet, Models "
    "Genesis, ResNets and plain vision transformers in 3D or 2D"
)


def read_weights(
    path: Path, trust: bool = False, inflate: Inflation = "mean", input_size: Size3 | None = None
) -> tuple[Recognised, str]:
    """Open and recognise a weights file of another program, or of ssl3d, a run too; and the digest of the file.

    `trust`: see open_container; `inflate`: how 2D kernels become 3D; `input_size`: see Hints.
    Raises FileNotFoundError, ValueError: one sentence naming the file and the remedy.
    """
    if path.exists() and not checkpoint.is_foreign(path):
        return own.read_run(path)
    container = open_container(path, trust)
    content: Mapping[str, Any] = container.content if isinstance(container.content, Mapping) else {}
    sidecar = read_sidecar(container.path, container.metadata)
    seen: list[State] = []
    for where, state in states(container.content):
        seen.append(state)
        for prefix, view, outside in views(state):
            hints = Hints(container.path, content, f"{where}/{prefix}", inflate, input_size)
            try:
                found = own.from_sidecar(sidecar, view) if sidecar else _ask(view, hints)
            except UnusableWeightsError as error:
                raise ValueError(f"'{container.path}' {error}") from None
            if found is not None:
                found.ignored |= outside
                if isinstance(exported := content.get("ssl3d"), Mapping):
                    found.provenance |= exported
                place = "/".join(part for part in (where, prefix) if part)
                found.notes[:0] = [f"read from '{place}' of the file"] if place else []
                return found, container.digest
    raise ValueError(_unknown(container, seen))


def _ask(state: State, hints: Hints) -> Recognised | None:
    return next((found for reader in _READERS if (found := reader(state, hints)) is not None), None)


def _unknown(container: Container, seen: list[State]) -> str:
    if not seen:
        held = type(container.content).__name__
        if isinstance(container.content, Mapping):
            held = f"{', '.join(map(repr, list(container.content)[:5]))}" if container.content else "nothing"
        return f"'{container.path}' holds no weights (it holds {held}): name a file with a state dict"
    names = list(seen[0])
    return (
        f"'{container.path}' holds {len(names)} tensors ('{names[0]}', '{names[1]}', ...) of no network known here; "
        f"known are {_FORMATS}"
    )
