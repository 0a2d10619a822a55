"""The Vision Transformer of timm and DINOv2 over 3D patches, so that their weights and their 3D heirs' fit by name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.layers import Mlp, SwiGLUPacked
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl3d.models.backbone import BackboneSpec, TokenBackbone, check_image, resize_positions
from ssl3d.models.vit import PatchDecoder
from ssl3d.regions import Size3, size3


class _PatchEmbed(nn.Module):
    """A convolution as wide as its stride, under timm's name `proj`."""

    def __init__(self, in_channels: int, dim: int, patch_size: Size3) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,dim,D/p,H/p,W/p)."""
        return self.proj(x)


class _Trunk(nn.Module):
    """Parameters under timm's names: patch_embed.proj, cls_token, reg_token, pos_embed, blocks, norm."""

    def __init__(self, kwargs: dict[str, Any], patch_size: Size3, tokens: int) -> None:
        super().__init__()
        dim = kwargs["embed_dim"]
        self.patch_embed = _PatchEmbed(kwargs["in_channels"], dim, patch_size)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim)) if kwargs["class_token"] else None
        self.reg_token = nn.Parameter(0.02 * torch.randn(1, kwargs["registers"], dim)) if kwargs["registers"] else None
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, dim))
        gated = kwargs["feed_forward"] == "swiglu"
        self.blocks = nn.ModuleList(
            Block(
                dim,
                kwargs["heads"],
                mlp_ratio=(kwargs["mlp_features"] + 0.5) / dim,  # timm multiplies and rounds down
                qkv_bias=True,
                init_values=1e-5 if kwargs["layer_scale"] else None,
                norm_layer=_norm,  # type: ignore[arg-type]
                act_layer=nn.SiLU if gated else nn.GELU,
                mlp_layer=SwiGLUPacked if gated else Mlp,  # type: ignore[arg-type]
            )
            for _ in range(kwargs["depth"])
        )
        self.norm = _norm(dim)


class DinoViT(TokenBackbone):
    """A ViT with class and register tokens, learned positions and layer scale; one scale, and a light decoder.

    `embed_dim`, `depth`, `heads`: 384, 12, 6 is ViT-S; 768, 12, 12 B; 1024, 24, 16 L. `patch_size`: voxels (D, H, W)
    a token. `input_size`: voxels for which the position table is made; for others it is resized by trilinear
    interpolation. `class_token`; `registers`: register tokens. They run with the patches and are not returned.
    `layer_scale`: learned scales of both branches (DINOv2). `feed_forward`: mlp (GELU) or swiglu (DINOv2's giant), its
    first linear map with `mlp_features` outputs (null: four times `embed_dim`).

    Names are timm's below `vit.`, with the positions of class and register tokens added to those tokens. Weights are
    drawn from torch's global generator. Raises ValueError naming the key. Dosovitskiy et al., arXiv 2010.11929; Oquab
    et al. (DINOv2), arXiv 2304.07193; Darcet et al. (registers), arXiv 2309.16588.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        in_channels: int = 1,
        patch_size: Size3 = (16, 16, 16),
        input_size: Size3 = (96, 96, 96),
        class_token: bool = True,
        registers: int = 0,
        layer_scale: bool = True,
        feed_forward: Literal["mlp", "swiglu"] = "mlp",
        mlp_features: int | None = None,
    ) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"model.in_channels is {in_channels}; it must be at least 1")
        if depth < 1:
            raise ValueError(f"model.depth is {depth}; it must be at least 1")
        if heads < 1 or embed_dim < 1 or embed_dim % heads:
            raise ValueError(f"model.embed_dim is {embed_dim}; it must be a multiple of model.heads ({heads})")
        if registers < 0:
            raise ValueError(f"model.registers is {registers}; it must be at least 0")
        if feed_forward not in ("mlp", "swiglu"):
            raise ValueError(f"model.feed_forward is {feed_forward!r}; it must be one of mlp, swiglu")
        if len(patch_size) != 3 or min(patch_size) < 1 or max(patch_size) < 2:
            raise ValueError(f"model.patch_size is {list(patch_size)}; it must be three numbers from 1 on, not all 1")
        if len(input_size) != 3 or any(n < p or n % p for n, p in zip(input_size, patch_size)):
            raise ValueError(
                f"model.input_size is {list(input_size)}; it must be three multiples of {list(patch_size)}"
            )
        self.embed_dim, self.depth, self.in_channels = embed_dim, depth, in_channels
        self.patch_size, self.input_size = size3(patch_size), size3(input_size)
        self.channels, self.strides = (embed_dim,), (self.patch_size,)
        self._kwargs: dict[str, Any] = {
            "embed_dim": embed_dim, "depth": depth, "heads": heads, "in_channels": in_channels,
            "patch_size": list(patch_size), "input_size": list(input_size), "class_token": class_token,
            "registers": registers, "layer_scale": layer_scale, "feed_forward": feed_forward,
            "mlp_features": mlp_features,
        }  # fmt: skip
        self.vit = _Trunk(
            self._kwargs | {"mlp_features": mlp_features or 4 * embed_dim},
            self.patch_size,
            math.prod(self.grid(self.input_size)),
        )

        scales = _scales(self.patch_size)
        self._decoder_strides = tuple(scales[:-1])
        chain = [max(embed_dim >> i, 16) for i in range(len(scales))]
        self.decoder_channels = tuple(chain[:0:-1])
        ratios = [size3([b // a for a, b in zip(fine, coarse)]) for fine, coarse in itertools.pairwise(scales)]
        self.decoder = PatchDecoder(chain, ratios[::-1])

    @property
    def decoder_strides(self) -> tuple[Size3, ...]:
        """Stride of each scale of `decode`: 1 and the products of the patch's prime factors below it."""
        return self._decoder_strides

    def embed(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,N,embed_dim), tokens in (D,H,W) order. Raises ValueError on a wrong size or channels."""
        check_image(self, x)
        return self.vit.patch_embed(x).flatten(2).transpose(1, 2)

    def positions(self, grid: Size3) -> Tensor:
        """(N, embed_dim): the learned table, resized by trilinear interpolation when `grid` is not its own."""
        return resize_positions(self.vit.pos_embed, self.grid(self.input_size), grid)[0]

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
        own = [t.expand(len(x), -1, -1).to(x) for t in (self.vit.cls_token, self.vit.reg_token) if t is not None]
        x = torch.cat([*own, *([] if prefix is None else [prefix.to(x)]), x], dim=1)
        first = sum(t.shape[1] for t in own)
        return [found[:, first:] for found in self._run(self.vit.blocks, x, layers)]

    def last_norm(self, tokens: Tensor) -> Tensor:
        """See TokenBackbone.last_norm."""
        return self.vit.norm(tokens)

    def segments(self) -> list[nn.Module]:
        """The blocks, and the decoder's stages."""
        return [*self.vit.blocks, *self.decoder.stages]

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """The token grid -> feature maps below the patch, finest first, from `down_to` on."""
        self.check_down_to(down_to)
        return self.decoder(features[-1], down_to)

    def spec(self) -> BackboneSpec:
        """Constructor arguments."""
        return BackboneSpec("ssl3d.models.dino_vit.DinoViT", dict(self._kwargs))

    def encoder_parameter_names(self) -> set[str]:
        """Every name outside `decoder.`."""
        return {name for name in self.state_dict() if not name.startswith("decoder.")}


def _norm(dim: int, **_: Any) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6)


def _scales(patch: Size3) -> list[Size3]:
    """Strides from 1 to the patch, finest first: an axis grows by its prime factors, the smallest first."""
    factors = [_primes(p) for p in patch]
    steps = max(map(len, factors))
    scales: list[Size3] = [(1, 1, 1)]
    for i in range(steps):
        # axes of fewer factors grow at the coarse end, so that the finest scales are the most alike
        grown = [f[i - steps + len(f)] if i >= steps - len(f) else 1 for f in factors]
        scales.append(size3([s * g for s, g in zip(scales[-1], grown)]))
    return scales


def _primes(n: int) -> list[int]:
    found, divisor = [], 2
    while n > 1:
        while n % divisor == 0:
            found.append(divisor)
            n //= divisor
        divisor += 1
    return found
