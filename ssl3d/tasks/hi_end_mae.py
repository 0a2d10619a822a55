"""Hi-End-MAE: rebuild hidden tokens by asking the encoder's inner layers, from deep to shallow.

Source: Tang et al., "Hi-End-MAE: hierarchical encoder-driven masked autoencoders are stronger vision learners for
medical image segmentation", arXiv 2502.08347 (decoder blocks that attend to blocks 9, 6 and 3 of the encoder), and what
its published code does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl3d.augment import Compose, centre_crop
from ssl3d.losses.masked import masked_mse
from ssl3d.models.backbone import Backbone, TokenBackbone
from ssl3d.regions import RegionBatch, RegionSpec
from ssl3d.tasks.mask_strategies import MaskStrategy
from ssl3d.tasks.masked_result import masked_result
from ssl3d.tasks.masking import BlockMask, as_size3
from ssl3d.tasks.targets import check_whole_blocks, normalised_blocks, own_greys
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.tokens import (
    check_whole_tokens,
    freeze_all_but,
    hidden_tokens,
    kept,
    put_back,
    take,
    unpatchify,
    visible_tokens,
)


class HiEndMAE(PretextTask):
    """Encodes the visible tokens, and rebuilds each hidden one with its own mean and deviation taken out; L2.

    The decoder joins the encoded tokens and mask tokens: `decoder_depth` blocks of self-attention, then one block a
    layer of `layers` that also attends to what that block of the encoder returned for the visible tokens. All tokens
    ask, visible ones too; the encoder has to keep in its inner layers what the decoder asks for.

    `patch_size`: voxels (D,H,W) the network sees. `mask_block`: voxels, a multiple of the token; the token when null.
    `mask_strategy`: which blocks are hidden; uniformly random ones when null. `augment`: applied before masking.
    `decoder_dim`, `decoder_heads`: width and attention heads of the decoder. `layers`: blocks of the encoder, counted
    from 1, in the order in which they are asked; when null three quarters, a half and a quarter of its depth, which
    are the paper's 9, 6 and 3 of 12. `parity`: as the published code does, read one block later than `layers` says
    (10, 7 and 4: it counts from 0) and read it as it leaves the block; else it is normalised first, for what a block
    adds grows with depth. Unlike there, no CLS token is added to backbones that have none.

    For token backbones. Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        mask_ratio: float = 0.75,
        mask_block: int | tuple[int, int, int] | None = None,
        mask_strategy: MaskStrategy | None = None,
        augment: Compose | None = None,
        decoder_dim: int = 384,
        decoder_heads: int = 12,
        decoder_depth: int = 2,
        layers: tuple[int, ...] | None = None,
        parity: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, TokenBackbone):
            raise ValueError(f"task HiEndMAE: {type(backbone).__name__} has no token layers to ask; use a ViT or MAE")
        self.backbone: TokenBackbone = backbone
        self.input_size = as_size3("patch_size", patch_size)
        check_takes(backbone, self.input_size, "patch_size")
        self.mask = BlockMask(mask_ratio, mask_block or backbone.patch_size, mask_strategy)
        self.mask.check(self.input_size)
        check_whole_tokens(self.mask.block, backbone.patch_size, self.input_size)
        check_whole_blocks(self.input_size, backbone.patch_size)
        self.augment = augment
        self.region = RegionSpec(augment.reach(self.input_size) if augment else self.input_size)
        freeze_all_but(backbone, backbone.encoder_parameter_names())
        read = read_layers(layers, backbone.depth, parity)
        visible = visible_tokens(self.mask, self.input_size, backbone.patch_size)
        self.passes = visible / math.prod(backbone.grid(self.input_size))
        self.rebuild = InnerLayerDecoder(backbone, visible, read, decoder_dim, decoder_heads, decoder_depth, parity)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, `masked_share` and `valid_share` (of voxels); with `preview` also pictures."""
        batch, _ = (self.augment or centre_crop)(batch, self.input_size)
        blocks = self.mask.draw(batch)
        hidden = self.mask.voxels(blocks, batch.size)
        prediction = self.predict(batch.image, blocks)
        valid = batch.valid_mask()
        target = normalised_blocks(batch.image, self.backbone.patch_size, valid)
        loss = masked_mse(prediction, target, hidden & valid)
        if preview:
            prediction = own_greys(prediction, batch.image, self.backbone.patch_size, valid)
        return masked_result(loss, batch, hidden, prediction if preview else None)

    def predict(self, image: Tensor, blocks: Tensor) -> Tensor:
        """(B,C,D,H,W) and hidden `blocks` (B,gD,gH,gW) -> (B,C,D,H,W), rebuilt from the visible voxels alone."""
        _, _, d, h, w = image.shape
        grid = self.backbone.grid((d, h, w))
        # Emptied before the embedding: a convolutional stem looks beyond its own token.
        visible = image.masked_fill(self.mask.voxels(blocks, (d, h, w)), 0.0)
        hidden = hidden_tokens(blocks, self.mask.block, self.backbone.patch_size)
        return unpatchify(self.rebuild(self.backbone, visible, hidden), grid, self.backbone.patch_size)


def read_layers(layers: Sequence[int] | None, depth: int, parity: bool) -> list[int]:
    """Numbers from 0 of the encoder's blocks that are read. Raises ValueError naming `layers` when one is missing."""
    if layers is None:
        layers = [max(1, depth * quarter // 4) for quarter in (3, 2, 1)]
    numbers = [layer if parity else layer - 1 for layer in layers]
    if not numbers or not all(0 <= number < depth for number in numbers):
        last = depth - 1 if parity else depth
        raise ValueError(f"layers={list(layers)}: list blocks from {0 if parity else 1} to {last}; there are {depth}")
    return numbers


class InnerLayerDecoder(nn.Module):
    """From visible tokens to voxels a token, by self-attention and by attention to the encoder's inner layers.

    Shapes: N tokens of the patch, K of them visible (`visible`), P voxels a token. `read`: numbers of the encoder's
    blocks, from 0. Raises ValueError naming the key on values out of range.
    """

    def __init__(
        self,
        backbone: TokenBackbone,
        visible: int,
        read: Sequence[int],
        dim: int,
        heads: int,
        depth: int,
        raw: bool,
    ) -> None:
        super().__init__()
        if heads < 1 or dim < heads or dim % heads:
            raise ValueError(f"decoder_heads={heads}: must divide decoder_dim={dim}")
        if depth < 0:
            raise ValueError(f"decoder_depth={depth}: at least 0")
        self.visible, self.read = visible, tuple(read)
        self.enter = nn.Linear(backbone.embed_dim, dim)
        self.place = nn.Linear(backbone.embed_dim, dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        like: dict[str, Any] = {"dim_feedforward": 4 * dim, "dropout": 0.0, "activation": "gelu"}
        like |= {"batch_first": True, "norm_first": True}
        self.alone = nn.ModuleList(nn.TransformerEncoderLayer(dim, heads, **like) for _ in range(depth))
        self.asking = nn.ModuleList(nn.TransformerDecoderLayer(dim, heads, **like) for _ in read)
        norms = (nn.Identity() if raw else nn.LayerNorm(backbone.embed_dim) for _ in read)
        self.answers = nn.ModuleList(nn.Sequential(norm, nn.Linear(backbone.embed_dim, dim)) for norm in norms)
        self.leave = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, backbone.in_channels * math.prod(backbone.patch_size))
        )

    def forward(self, backbone: TokenBackbone, visible: Tensor, hidden: Tensor) -> Tensor:
        """Masked image (B,C,D,H,W) and hidden tokens (B,N) bool -> (B,N,C*P)."""
        grid = backbone.grid(visible.shape[2:])
        index = kept(hidden, self.visible)
        tokens = take(backbone.embed(visible), index)
        *inner, last = backbone.blocks(tokens, grid, index=index, layers=[*self.read, backbone.depth - 1])
        encoded = self.enter(backbone.last_norm(last))
        x = put_back(encoded, index, self.mask_token, hidden.shape[1]) + self.place(backbone.positions(grid))
        for block in self.alone:
            x = block(x)
        for block, answer, layer in zip(self.asking, self.answers, inner):
            x = block(x, answer(layer))
        return self.leave(x)
