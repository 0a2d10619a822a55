"""Stacks cut into slabs: their voxels, which are valid, which slabs of two views are the same, attention over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssl3d.augment.spatial import on_device
from ssl3d.regions import Geometry, Size3

USABLE = 0.5  # share of a slab's voxels that must be valid


def cut(stack: Tensor, slabs: int) -> Tensor:
    """(B,C,S*D,H,W) -> (B*S,C,D,H,W), sample by sample."""
    return stack.unflatten(2, (slabs, -1)).movedim(2, 1).flatten(0, 1)


def usable(valid: Tensor, slabs: int) -> Tensor:
    """Valid voxels (B,1,S*D,H,W) bool -> (B,S) bool: slabs that hold enough of them."""
    return cut(valid.float(), slabs).flatten(1).mean(1).unflatten(0, (-1, slabs)) >= USABLE


def same_slab(size: Size3, slabs: int, here: Geometry, there: Geometry) -> tuple[Tensor, Tensor]:
    """Geometries of two views into one region -> for every slab of the first (B,S): which of the second, and whether.

    `size`: voxels (D,H,W) of a slab. A slab's centre is looked for along the second view's stack, wherever in its plane
    it lies; turned upside down, the stacks run against each other. Where it lies in no slab, the first is named: False.
    """
    depth, height, width = size
    centres = torch.tensor([[(s + 0.5) * depth - 0.5, (height - 1) / 2, (width - 1) / 2] for s in range(slabs)])
    centres = on_device(centres, here.matrix.device).expand(len(here), -1, -1)
    found = there.to_output(here.to_source(centres))[..., 0]
    index = ((found + 0.5) / depth).floor().long()
    inside = (index >= 0) & (index < slabs)
    return torch.where(inside, index, 0), inside


class SlabAttention(nn.Module):
    """A transformer over the embeddings (B,S,F) of a stack's slabs and one token of the whole stack.

    `depth` layers of `heads`. Hidden slabs are replaced by a learned token, with their place in the stack.
    """

    def __init__(self, dim: int, slabs: int, depth: int, heads: int) -> None:
        super().__init__()
        self.scale = dim**0.5  # unit vectors in, features of unit variance to the layers
        self.whole, self.hidden = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, 1, dim))
        self.places = nn.Parameter(torch.zeros(1, slabs, dim))
        for parameter in (self.whole, self.hidden, self.places):
            nn.init.trunc_normal_(parameter, std=0.02)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(dim), enable_nested_tensor=False)

    def forward(self, embedded: Tensor, seen: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B,S,F), `seen` and `hidden` (B,S) bool -> of the whole (B,F) and of every slab (B,S,F).

        Slabs that are not `seen` are not attended to.
        """
        tokens = embedded * self.scale
        if hidden is not None:
            tokens = torch.where(hidden[..., None], self.hidden.to(tokens.dtype), tokens)
        whole = self.whole.to(tokens.dtype).expand(len(tokens), -1, -1)
        ignored = torch.cat([torch.zeros_like(seen[:, :1]), ~seen], dim=1)
        out = self.layers(torch.cat([whole, tokens + self.places], dim=1), src_key_padding_mask=ignored)
        return out[:, 0], out[:, 1:]


def draw_hidden(share: float, slabs: int, generators: Sequence[torch.Generator]) -> Tensor:
    """(B,S) bool on the CPU: exactly round(share * S) slabs of each sample, at least one and not all."""
    count = min(max(round(share * slabs), 1), slabs - 1)
    order = torch.stack([torch.randperm(slabs, generator=g) for g in generators])
    return torch.zeros((len(order), slabs), dtype=torch.bool).scatter(1, order[:, :count], True)
