"""The interface between networks and everything that trains, exports or evaluates them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.regions import Size3, size3


@dataclass(frozen=True)
class BackboneSpec:
    """Enough to rebuild a backbone anywhere, in plain types: `target` import path, `kwargs` of its constructor.

    `architecture` is the network in the terms of the program it is exported to (nnU-Net's architecture block), or None.
    """

    target: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    architecture: dict[str, Any] | None = None


class Backbone(nn.Module):
    """An encoder (and, where it has one, a decoder) over (B,C,D,H,W) float images.

    `in_channels`; `channels` and `strides` per scale, finest first: scale i has `channels[i]` features on a grid
    of size / strides[i]. `decoder_channels` per scale of `decode`, finest first; empty when there is no decoder; their
    strides are `decoder_strides`. Input sizes must be multiples of `total_stride`.
    """

    in_channels: int
    channels: tuple[int, ...]
    strides: tuple[Size3, ...]
    decoder_channels: tuple[int, ...] = ()
    recomputes: bool = False  # segments keep their input alone and run again going backward (ssl3d.models.recompute)

    @property
    def total_stride(self) -> Size3:
        """The coarsest scale's stride: what input sizes must be multiples of."""
        return self.strides[-1]

    @property
    def decoder_strides(self) -> tuple[Size3, ...]:
        """Stride of each scale of `decode`, finest first: the encoder's, unless a family has scales of its own."""
        return self.strides[: len(self.decoder_channels)]

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> [(B, channels[i], D/s_i, H/s_i, W/s_i)], finest first."""
        raise NotImplementedError

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """Encoder features -> decoder features, finest first, from scale `down_to` on, before any segmentation head."""
        raise NotImplementedError

    @property
    def frozen_channels(self) -> tuple[int, ...]:
        """Width of each map of `frozen_features`."""
        return self.channels

    def frozen_features(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> the maps (B,C_i,D/s_i,H/s_i,W/s_i) that probes of the frozen encoder read: all its scales."""
        return self.encode(x)

    @property
    def pool_channels(self) -> int:
        """Width of `pool`: that of the coarsest scale, unless a family pools more."""
        return self.channels[-1]

    def pool(self, features: Sequence[Tensor]) -> Tensor:
        """Encoder features -> (B, pool_channels): the volume embedding used by contrast, probes and classification.

        The global average of the coarsest scale, summed in at least float32.
        """
        return global_average(features[-1])

    def spec(self) -> BackboneSpec:
        """Plain types that rebuild this network: `build_backbone(spec)` has equal parameter names and shapes."""
        raise NotImplementedError

    def encoder_parameter_names(self) -> set[str]:
        """Names in `state_dict()` that belong to the encoder; the rest is decoder."""
        raise NotImplementedError

    def pool_parameter_names(self) -> set[str]:
        """Names of the parameters that `pool(encode(x))` depends on: the encoder's, unless a family says less."""
        return self.encoder_parameter_names()

    def segments(self) -> list[nn.Module]:
        """Modules that `encode`, `decode` and `blocks` call as a whole, none inside another; none unless a family says.

        Most parameters and activations lie in them: what is recomputed, or sharded over ranks, a segment at a time.
        """
        return []

    def check_size(self, size: Sequence[int]) -> None:
        """Raise ValueError naming the axis when `size` (D,H,W) is no multiple of the total stride."""
        for axis, n, s in zip("DHW", size, self.total_stride):
            if n % s or n <= 0:
                usable = sorted({max(s, n // s * s), max(s, (n // s + 1) * s)})
                raise ValueError(
                    f"input size {tuple(size)}: axis {axis} is {n}, not a multiple of the backbone's stride {s}; "
                    f"use {' or '.join(map(str, usable))}"
                )

    def check_down_to(self, down_to: int) -> None:
        """Raise ValueError when `decode` has no scale `down_to`."""
        if not 0 <= down_to < len(self.decoder_channels):
            raise ValueError(
                f"decode: down_to is {down_to}; the decoder has scales 0 to {len(self.decoder_channels) - 1}"
            )


class StagedBackbone(Backbone):
    """A convolutional backbone whose encoder is a chain of modules: it can be run on the visible voxels alone."""

    def encoder_stages(self) -> list[list[nn.Module]]:
        """For each scale, finest first, the modules to run in order: `encode(x)[i]` is what those of scale i return."""
        raise NotImplementedError


class MaskableBackbone(Backbone):
    """A backbone whose patch embeddings can be replaced before anything else reads them, as SimMIM does.

    N = D*H*W / patch voxels tokens, flattened in ONE axis order (D, H, W), row-major. `patch_size` voxels per token;
    `embed_dim` features per token. `embedded_from`: the first scale of `encode` that follows from the tokens alone
    (scales before it also read the image). For every image x of size (D,H,W),
    `encode_embedded(embed(x), grid((D,H,W)))` equals `encode(x)[embedded_from:]`.
    """

    patch_size: Size3
    embed_dim: int
    embedded_from: int = 0

    def embed(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,N,embed_dim): content only, no positions."""
        raise NotImplementedError

    def encode_embedded(self, tokens: Tensor, grid: Size3, coarsest: bool = False) -> list[Tensor]:
        """Content tokens (B,N,embed_dim) on a token grid (D,H,W) -> the scales of `encode` from `embedded_from` on.

        Adds positions itself, so that content can be a mask token. `coarsest`: compute and return the last scale alone.
        """
        raise NotImplementedError

    def embedded_parameter_names(self, coarsest: bool = False) -> set[str]:
        """Names of the parameters that `embed` and `encode_embedded(coarsest=...)` use; the encoder's unless said."""
        return self.encoder_parameter_names()

    def grid(self, size: Sequence[int]) -> Size3:
        """Token grid (D,H,W) of an image of `size` voxels. Raises ValueError as `check_size`."""
        self.check_size(size)
        return size3(n // p for n, p in zip(size, self.patch_size))


class TokenBackbone(MaskableBackbone):
    """A backbone of tokens in one scale: a transformer whose every block sees all tokens that it is given.

    `depth`: its number of blocks. What `encode` returns is `last_norm` of what the last block leaves.
    """

    depth: int

    def last_norm(self, tokens: Tensor) -> Tensor:
        """(B,K,C) as a block leaves them -> (B,K,C) as they leave the encoder."""
        raise NotImplementedError

    def positions(self, grid: Size3) -> Tensor:
        """(N, embed_dim) for a token grid (D,H,W), interpolated to any grid, non-cubic too."""
        raise NotImplementedError

    def blocks(
        self,
        tokens: Tensor,
        grid: Size3,
        index: Tensor | None = None,
        prefix: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Run the transformer on content tokens (B,K,C); adds positions itself, so content can be a mask token.

        `index` (B,K): which grid positions the tokens stand at (all, in order, when None); rotary positions follow it.
        `prefix` (B,P,C): CLS or register tokens, without positions, returned in front.
        Returns one (B,P+K,C) per entry of `layers`, numbers of blocks from 0, as those blocks leave it: all inner
        layers in one pass, each with the `last_norm` that a method wants. When None, the last one with `last_norm`.
        """
        raise NotImplementedError

    def _run(self, blocks: nn.ModuleList, x: Tensor, layers: Sequence[int] | None, **named: Any) -> list[Tensor]:
        """`x` through `blocks`, each called with `named`: what `blocks()` returns for `layers`.

        Raises ValueError when `layers` names a block that does not exist.
        """
        if layers is None:
            for block in blocks:
                x = block(x, **named)
            return [self.last_norm(x)]
        if not all(0 <= i < self.depth for i in layers):
            raise ValueError(f"blocks: layers is {list(layers)}; the network has blocks 0 to {self.depth - 1}")
        outputs = []
        for block in blocks[: max(layers, default=-1) + 1]:
            x = block(x, **named)
            outputs.append(x)
        return [outputs[i] for i in layers]

    @property
    def frozen_layers(self) -> list[int]:
        """The blocks that probes read: four spread over the depth (all of fewer), the last among them."""
        return sorted({max(self.depth * i // 4, 1) - 1 for i in (1, 2, 3, 4)})

    @property
    def frozen_channels(self) -> tuple[int, ...]:
        """See Backbone.frozen_channels."""
        return (self.embed_dim,) * len(self.frozen_layers)

    def frozen_features(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> a map (B,embed_dim,D/p,H/p,W/p) of each of `frozen_layers`, with `last_norm`, first to last.

        As a convolutional encoder is read at all its scales. What the last block alone returns depends on what the
        method asked of it: SimMIM, for one, asks nothing of its visible tokens. Oquab et al., arXiv 2304.07193, 7.4,
        read four blocks too.
        """
        grid = self.grid(x.shape[2:])
        found = self.blocks(self.embed(x), grid, layers=self.frozen_layers)
        return [self.last_norm(tokens).transpose(1, 2).unflatten(2, grid) for tokens in found]

    def encode_embedded(self, tokens: Tensor, grid: Size3, coarsest: bool = False) -> list[Tensor]:
        """(B,N,embed_dim) -> [(B,embed_dim,D/p,H/p,W/p)]: the normalised tokens of the last block, on their grid."""
        return [self.blocks(tokens, grid)[0].transpose(1, 2).unflatten(2, grid)]

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> [(B,embed_dim,D/p,H/p,W/p)]: the normalised tokens of the last block, on their grid."""
        return self.encode_embedded(self.embed(x), self.grid(x.shape[2:]))


def check_image(backbone: Backbone, x: Tensor) -> None:
    """Raise ValueError when `x` (B,C,D,H,W) has another number of channels or a size that `backbone` cannot take."""
    if x.shape[1] != backbone.in_channels:
        raise ValueError(f"the image has {x.shape[1]} channels, the model model.in_channels={backbone.in_channels}")
    backbone.check_size(x.shape[2:])


def check_normalisable(backbone: Backbone, size: Sequence[int]) -> None:
    """Raise ValueError when the coarsest scale of an image of `size` (D,H,W) is one voxel: instance norm needs two."""
    if all(n == s for n, s in zip(size, backbone.total_stride)):
        raise ValueError(
            f"input size {tuple(size)}: the coarsest scale would be a single voxel, which instance norm cannot "
            "normalise; make one axis twice as long"
        )


def outermost(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    """The modules of these kinds within `module` that lie in no other one of them, each once."""
    found = dict[int, nn.Module]()
    for child in module.children():
        for inner in [child] if isinstance(child, kinds) else outermost(child, kinds):
            found.setdefault(id(inner), inner)
    return list(found.values())


def resize_positions(table: Tensor, old: Size3, new: Size3) -> Tensor:
    """Learned positions (1,N,C) of a token grid `old` (D,H,W) -> (1,M,C) of `new`, by trilinear interpolation."""
    if tuple(old) == tuple(new):
        return table
    volume = table.transpose(1, 2).unflatten(2, old)
    return F.interpolate(volume, size=new, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)


def global_average(x: Tensor) -> Tensor:
    """(B,C,D,H,W) -> (B,C), summed in at least float32."""
    return x.mean(dim=(2, 3, 4), dtype=torch.promote_types(x.dtype, torch.float32))


def build_backbone(spec: BackboneSpec) -> Backbone:
    """The network a spec describes, freshly initialised. Raises ValueError when its target is no Backbone."""
    module, _, name = spec.target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None) if module else None
    except ModuleNotFoundError as error:
        raise ValueError(f"backbone '{spec.target}' cannot be imported ({error}): install what defines it") from None
    if not (isinstance(found, type) and issubclass(found, Backbone)):
        raise ValueError(f"backbone '{spec.target}' is not a class derived from ssl3d.models.backbone.Backbone")
    return found(**spec.kwargs)
