"""What of a backbone a fine-tuning trains: all, everything but the encoder, or LoRA's terms in its place."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from ssl3d.models.backbone import Backbone
from ssl3d.models.lora import LoRALinear, add_lora

Train = Literal["all", "encoder_frozen", "decoder", "lora"]


class Frozen:
    """Freezes what `train` says of a backbone, once, when it is made; `hold` after every change between train and eval.

    all: nothing. encoder_frozen: the encoder's parameters; batch norms of it go on averaging the new images and its
    dropout goes on. decoder: the encoder as a whole, its norm statistics and dropout too: decoder and head learn, the
    head alone where there is no decoder. lora: the encoder's parameters, and low-rank terms beside its attention
    projections learn with decoder and head. On a network without batch norm and dropout the second and third are one.
    Raises ValueError when `train` is no such word, or lora is asked of a backbone without attention.
    """

    def __init__(self, backbone: Backbone, train: Train, rank: int = 4, alpha: float = 8.0) -> None:
        if train not in get_args(Train):
            raise ValueError(f"train is {train!r}; it must be one of {', '.join(get_args(Train))}")
        self.still: list[nn.Module] = []
        if train == "all":
            return
        names = backbone.encoder_parameter_names()
        for name, parameter in backbone.named_parameters():
            if name in names:
                parameter.requires_grad_(False)
        if train == "lora" and not add_lora(backbone, rank, alpha):
            raise ValueError(
                f"train is lora, but {type(backbone).__name__} has no attention to adapt: use a transformer, or "
                "train: decoder"
            )
        if train == "decoder":
            self.still = _outermost(backbone, names)

    def hold(self) -> None:
        """Put the modules that stay as they are back into eval mode."""
        for module in self.still:
            module.eval()


def _outermost(backbone: Backbone, names: set[str]) -> list[nn.Module]:
    """The largest modules whose whole state belongs to the encoder (`names`), none inside another."""
    found: list[nn.Module] = []

    def walk(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            state = child.state_dict(prefix=f"{prefix}{name}.")
            if state and set(state) <= names:
                found.append(child)
            elif state:
                walk(child, f"{prefix}{name}.")

    walk(backbone, "")
    return found


def count_trained(module: nn.Module) -> tuple[int, int]:
    """(parameters that learn, of them LoRA's) of a module."""
    lora = [p for m in module.modules() if isinstance(m, LoRALinear) for p in (m.lora_a, m.lora_b)]
    return sum(p.numel() for p in module.parameters() if p.requires_grad), sum(p.numel() for p in lora)
