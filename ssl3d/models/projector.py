"""The multilayer perceptron between a volume embedding and a contrastive loss."""

from __future__ import annotations

import itertools

from torch import nn


class Projector(nn.Sequential):
    """(B, in_dim) -> (B, out_dim): `layers` linear layers with LayerNorm and ReLU in between.

    LayerNorm, where the papers have BatchNorm: it does not depend on how many samples a rank holds.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, layers: int = 2) -> None:
        modules: list[nn.Module] = []
        dims = [in_dim, *[hidden_dim] * (layers - 1)]
        for before, after in itertools.pairwise(dims):
            modules += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU()]
        super().__init__(*modules, nn.Linear(dims[-1], out_dim))
