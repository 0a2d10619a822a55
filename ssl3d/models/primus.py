"""Primus and PrimusV2, nnU-Net's 3D vision transformers, from dynamic-network-architectures, so that names match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from dynamic_network_architectures.architectures import primus as dna
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from timm.layers import build_rotary_pos_embed
from torch import Tensor, nn

from ssl3d.models.backbone import (
    BackboneSpec,
    TokenBackbone,
    check_image,
    check_normalisable,
    outermost,
    resize_positions,
)
from ssl3d.regions import Size3, size3

Size = Literal["tiny", "S", "B", "M", "L"]

# (features, blocks, heads); S to L are those of the paper, `tiny` is made for CPUs.
SIZES = {"tiny": (96, 4, 4), "S": (396, 12, 6), "B": (792, 12, 12), "M": (864, 16, 12), "L": (1056, 24, 16)}
_DECODER_FEATURES = 16


class Primus(TokenBackbone):
    """Primus: one token a patch, EVA-02 blocks (SwiGLU, rotary positions) and a light decoder to full resolution.

    `size`: tiny (CPU) | S | B | M | L. `patch_size`: voxels (D, H, W) a token, powers of two. `input_size`: voxels for
    which the learned position table is made; for other sizes it is resized by trilinear interpolation, as nnU-Net does
    to fine-tune with another patch, while rotary positions always count tokens. `drop_path`: share of residual
    branches dropped in the last block, growing linearly from 0 in the first (the paper trains with 0.2).

    Names of `down_projection` and `eva` are those of nnU-Net's network, token order included. The decoder is its
    `up_projection` with 16 outputs a voxel: a 1x1x1 head after it can be any segmentation head of the paper's.
    Weights are drawn from torch's global generator. Raises ValueError naming the key. Wald et al., arXiv 2503.01835.
    """

    def __init__(
        self,
        size: Size = "M",
        in_channels: int = 1,
        patch_size: Size3 = (8, 8, 8),
        input_size: Size3 = (160, 160, 160),
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"model.size is {size!r}; it must be one of {', '.join(SIZES)}")
        if in_channels < 1:
            raise ValueError(f"model.in_channels is {in_channels}; it must be at least 1")
        if len(patch_size) != 3 or any(p < 1 or p & (p - 1) for p in patch_size) or max(patch_size) < 2:
            raise ValueError(f"model.patch_size is {list(patch_size)}; it must be three powers of two, not all 1")
        if len(input_size) != 3 or any(n < p or n % p for n, p in zip(input_size, patch_size)):
            raise ValueError(
                f"model.input_size is {list(input_size)}; it must be three multiples of {list(patch_size)}"
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"model.drop_path is {drop_path}; it must be at least 0 and below 1")
        self.size, self.in_channels, self.drop_path = size, in_channels, drop_path
        self.patch_size, self.input_size = size3(patch_size), size3(input_size)
        self.embed_dim, self.depth, heads = SIZES[size]
        self.channels, self.strides = (self.embed_dim,), (self.patch_size,)

        network = self._network(
            input_channels=in_channels,
            embed_dim=self.embed_dim,
            patch_embed_size=self.patch_size,
            num_classes=_DECODER_FEATURES,
            eva_depth=self.depth,
            eva_numheads=heads,
            input_shape=self.input_size,
            drop_path_rate=drop_path,
            init_values=0.1,
            scale_attn_inner=True,
        )
        self.down_projection = network.down_projection
        self.eva = network.eva
        self.up_projection = network.up_projection

        stride, strides, widths = self.patch_size, [], []
        for up in (m for m in self.up_projection.modules() if isinstance(m, nn.ConvTranspose3d)):
            stride = size3([s // u for s, u in zip(stride, up.stride)])
            strides.append(stride)
            widths.append(up.out_channels)
        self._decoder_strides, self.decoder_channels = tuple(strides[::-1]), tuple(widths[::-1])

    def _network(self, **kwargs: Any) -> dna.Primus:
        return dna.Primus(**kwargs)

    @property
    def decoder_strides(self) -> tuple[Size3, ...]:
        """Stride of each scale of `decode`: 1, 2, 4, ... up to half the patch."""
        return self._decoder_strides

    def embed(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,N,embed_dim), tokens in (D,H,W) order. Raises ValueError on a wrong size or channels."""
        check_image(self, x)
        return self.down_projection(x).flatten(2).transpose(1, 2)

    def positions(self, grid: Size3) -> Tensor:
        """(N, embed_dim): the learned table, resized by trilinear interpolation when `grid` is not its own."""
        own = size3(n // p for n, p in zip(self.input_size, self.patch_size))
        return resize_positions(self.eva.pos_embed, own, grid)[0]

    def rotary(self, grid: Size3) -> Tensor:
        """(N, 2 * features a head): sines, then cosines of the angles by which queries and keys are turned."""
        rope = self.eva.rope
        sin, cos = build_rotary_pos_embed(
            list(grid),
            dim=rope.dim,
            temperature=rope.temperature,
            in_pixels=False,
            device=self.eva.pos_embed.device,
        )
        return torch.cat((sin, cos), dim=-1)

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
        positions, rope = self.positions(grid), self.rotary(grid)
        if index is not None:
            positions, rope = positions[index], rope[index].unsqueeze(1)  # (B,K,C) and (B,1,K,2F), one for all heads
        x = tokens + positions
        if prefix is not None:
            x = torch.cat((prefix.to(x), x), dim=1)
            half = rope.shape[-1] // 2
            unturned = torch.cat((rope.new_zeros(half), rope.new_ones(half)))  # an angle of 0: sine 0, cosine 1
            rope = torch.cat((unturned.expand(*rope.shape[:-2], prefix.shape[1], -1), rope), dim=-2)
        return self._run(self.eva.blocks, x, layers, rope=rope)

    def last_norm(self, tokens: Tensor) -> Tensor:
        """See TokenBackbone.last_norm."""
        return self.eva.norm(tokens)

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """The token grid -> feature maps of strides 1, 2, ... below the patch, finest first, from `down_to` on."""
        self.check_down_to(down_to)
        x, outputs = features[-1], []
        for stage in self.up_projection.decode[: len(self.decoder_channels) - down_to]:
            x = stage(x)
            outputs.append(x)
        return outputs[::-1]

    def segments(self) -> list[nn.Module]:
        """The blocks, and the decoder's stages."""
        return [*self.eva.blocks, *self.up_projection.decode[: len(self.decoder_channels)]]

    def spec(self) -> BackboneSpec:
        """Constructor arguments. No architecture block: nnU-Net builds a Primus in its trainers, not from plans."""
        kwargs = {
            "size": self.size,
            "in_channels": self.in_channels,
            "patch_size": list(self.patch_size),
            "input_size": list(self.input_size),
            "drop_path": self.drop_path,
        }
        return BackboneSpec("ssl3d.models.primus.Primus", kwargs)

    def encoder_parameter_names(self) -> set[str]:
        """Every name outside `up_projection.`."""
        return {name for name in self.state_dict() if not name.startswith("up_projection.")}


class PrimusV2(Primus):
    """Primus with a residual convolutional stem of stride 8 in place of the patch embedding.

    A token also sees the voxels around its patch, and the stem's instance norms the whole image: a task that hides
    patches must hide their voxels before `embed`, not only replace their tokens. Arguments as Primus; 8-voxel patches.
    """

    def __init__(
        self,
        size: Size = "M",
        in_channels: int = 1,
        input_size: Size3 = (160, 160, 160),
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(size, in_channels, (8, 8, 8), input_size, drop_path)

    def _network(self, **kwargs: Any) -> dna.Primus:
        return dna.PrimusV2(**kwargs)

    def segments(self) -> list[nn.Module]:
        """Primus's, and the residual blocks of the stem."""
        return [*outermost(self.down_projection, (BasicBlockD,)), *super().segments()]

    def spec(self) -> BackboneSpec:
        """Constructor arguments. No architecture block: nnU-Net builds a Primus in its trainers, not from plans."""
        kwargs = super().spec().kwargs
        del kwargs["patch_size"]
        return BackboneSpec("ssl3d.models.primus.PrimusV2", kwargs)

    def check_size(self, size: Sequence[int]) -> None:
        """Raise ValueError when `size` (D,H,W) is no multiple of 8, or a single patch, which cannot be normalised."""
        super().check_size(size)
        check_normalisable(self, size)
