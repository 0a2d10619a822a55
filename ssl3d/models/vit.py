"""A plain 3D Vision Transformer: one token a patch, pre-norm blocks, fixed sine-cosine positions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.models.backbone import BackboneSpec, TokenBackbone, check_image
from ssl3d.regions import Size3, size3

# (features, blocks, heads); S, B and L are those of Dosovitskiy et al., `tiny` is made for CPUs.
_SIZES = {"tiny": (96, 4, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}


class Block(nn.Module):
    """Pre-norm attention and MLP (four times as wide), each added to its input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B,N,C) -> (B,N,C)."""
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, C/heads)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = x + self.proj(attended)
        return x + self.mlp(self.norm2(x))


class PatchDecoder(nn.Module):
    """Tokens -> full resolution: transposed convolutions that double the grid and halve the features."""

    def __init__(self, channels: Sequence[int], strides: Sequence[Size3]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(a, b, stride, stride), nn.GroupNorm(1, b), nn.GELU())
            for a, b, stride in zip(channels, channels[1:], strides)
        )

    def forward(self, x: Tensor, down_to: int = 0) -> list[Tensor]:
        """(B,C,d,h,w) -> feature maps from scale `down_to` on, finest first."""
        outputs = []
        for stage in self.stages[: len(self.stages) - down_to]:
            x = stage(x)
            outputs.append(x)
        return outputs[::-1]


class ViT(TokenBackbone):
    """A plain ViT over 3D patches, in one scale, with a light decoder to full resolution.

    `size`: tiny (CPU) | S | B | L. `patch_size`: voxels (D, H, W) a token, powers of two. Positions are fixed sines
    and cosines of the token's place, a third of the features an axis: they need no interpolation for another grid,
    cubic or not, and a token keeps its meaning when the crop grows (stretching a learned table would rescale it in mm).
    The weights are drawn from torch's global generator. Raises ValueError naming the key.
    Dosovitskiy et al., arXiv 2010.11929; positions and initialisation as He et al., arXiv 2111.06377, appendix A.
    """

    def __init__(
        self, size: Literal["tiny", "S", "B", "L"] = "B", in_channels: int = 1, patch_size: Size3 = (16, 16, 16)
    ) -> None:
        super().__init__()
        if size not in _SIZES:
            raise ValueError(f"model.size is {size!r}; it must be one of {', '.join(_SIZES)}")
        if in_channels < 1:
            raise ValueError(f"model.in_channels is {in_channels}; it must be at least 1")
        if len(patch_size) != 3 or any(p < 1 or p & (p - 1) for p in patch_size) or max(patch_size) < 2:
            raise ValueError(f"model.patch_size is {list(patch_size)}; it must be three powers of two, not all 1")
        self.size, self.in_channels = size, in_channels
        self.patch_size = size3(patch_size)
        self.embed_dim, self.depth, heads = _SIZES[size]
        self.channels, self.strides = (self.embed_dim,), (self.patch_size,)

        self.patch_embed = nn.Conv3d(in_channels, self.embed_dim, self.patch_size, self.patch_size)
        self.layers = nn.ModuleList(Block(self.embed_dim, heads) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.embed_dim, eps=1e-6)

        steps = int(math.log2(max(patch_size)))
        scales = [tuple(max(p >> (steps - i), 1) for p in patch_size) for i in range(steps + 1)]  # finest first
        chain = [max(self.embed_dim >> i, 16) for i in range(steps + 1)]
        self._decoder_strides: tuple[Size3, ...] = tuple((a, b, c) for a, b, c in scales[:-1])
        self.decoder_channels = tuple(chain[:0:-1])
        ratios = [(b[0] // a[0], b[1] // a[1], b[2] // a[2]) for a, b in itertools.pairwise(scales)]
        self.decoder = PatchDecoder(chain, ratios[::-1])
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv3d)):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
                nn.init.zeros_(module.bias) if module.bias is not None else None

    @property
    def decoder_strides(self) -> tuple[Size3, ...]:
        """Stride of each scale of `decode`: 1, 2, 4, ... up to half the patch."""
        return self._decoder_strides

    def embed(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,N,embed_dim), tokens in (D,H,W) order. Raises ValueError on a wrong size or channels."""
        check_image(self, x)
        return self.patch_embed(x).flatten(2).transpose(1, 2)

    def positions(self, grid: Size3) -> Tensor:
        """(N, embed_dim) sines and cosines; a third of the features an axis, any left over are zero."""
        n = self.embed_dim // 6
        weight = self.patch_embed.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        rates = 10_000 ** -(torch.arange(n, device=weight.device, dtype=wide) / n)
        axes = [torch.arange(g, device=weight.device, dtype=wide) for g in grid]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3, 1)
        angles = place * rates  # (N, 3, n)
        table = torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(1)
        return F.pad(table, (0, self.embed_dim - 6 * n)).to(weight.dtype)

    def blocks(
        self,
        tokens: Tensor,
        grid: Size3,
        index: Tensor | None = None,
        prefix: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """See TokenBackbone.blocks. `layers`: block numbers (0 is the first), returned as the blocks leave them.

        Raises ValueError when `layers` names a block that does not exist.
        """
        positions = self.positions(grid)
        x = tokens + (positions if index is None else positions[index])
        if prefix is not None:
            x = torch.cat((prefix.to(x), x), dim=1)
        return self._run(self.layers, x, layers)

    def last_norm(self, tokens: Tensor) -> Tensor:
        """See TokenBackbone.last_norm."""
        return self.norm(tokens)

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """The token grid -> feature maps of strides 1, 2, ... below the patch, finest first, from `down_to` on."""
        self.check_down_to(down_to)
        return self.decoder(features[-1], down_to)

    def segments(self) -> list[nn.Module]:
        """The blocks, and the decoder's stages."""
        return [*self.layers, *self.decoder.stages]

    def spec(self) -> BackboneSpec:
        """Constructor arguments."""
        kwargs = {"size": self.size, "in_channels": self.in_channels, "patch_size": list(self.patch_size)}
        return BackboneSpec("ssl3d.models.vit.ViT", kwargs)

    def encoder_parameter_names(self) -> set[str]:
        """Every name outside `decoder.`."""
        return {name for name in self.state_dict() if not name.startswith("decoder.")}
