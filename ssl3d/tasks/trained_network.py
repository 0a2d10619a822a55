"""A trained network beside the one that learns: what a task asks a recipe for, and the training loop fills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ssl3d.models.backbone import Backbone
from ssl3d.regions import Size3
from ssl3d.schema import Later


class TrainedNetwork(Later):
    """A network as the recipe's model section writes it, and `init`: the run or weights file that fills it."""

    base = Backbone
    extra: ClassVar[Mapping[str, tuple[Any, Any]]] = {"init": (str | None, None)}

    def make(self, **given: Any) -> Backbone:
        """The network in evaluation, which no gradient reaches, with random weights until the training loop fills it.

        Raises ValueError as its constructor does.
        """
        return super().make(**given).requires_grad_(False).eval()


@dataclass(frozen=True)
class Trained:
    """A network that is to hold trained weights, and where these lie: a run, a weights file, or None: not said.

    `size`: voxels (D,H,W) of each region that it sees. `decoder`: whether its decoder is used, and must be trained too.
    """

    network: Backbone
    init: str | None
    size: Size3
    decoder: bool = False
