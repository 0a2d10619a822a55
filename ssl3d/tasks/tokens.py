"""Tokens and voxels: fill in hidden tokens, fold tokens back into an image; and freeze what a task does not train."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ssl3d.models.backbone import Backbone, TokenBackbone
from ssl3d.regions import RegionBatch, Size3
from ssl3d.tasks.masking import BlockMask


def freeze_all_but(backbone: Backbone, trained: Collection[str]) -> None:
    """Mark the parameters that are not in `trained` as not trained: DDP would wait for their gradients for ever."""
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name in trained)


def decoder_parameter_names(backbone: Backbone, size: Size3, down_to: int) -> set[str]:
    """Names of the parameters that `decode(encode(x), down_to)[0]` depends on; decoder scales above it are not run."""
    shapes = copy.deepcopy(backbone).to("meta").requires_grad_(True)  # shapes alone: no arithmetic is done
    with torch.enable_grad():  # a task may be built where no gradients are wanted
        features = shapes.encode(torch.empty((2, backbone.in_channels, *size), device="meta"))
        shapes.decode(features, down_to)[0].sum().backward()
    return {name for name, parameter in shapes.named_parameters() if parameter.grad is not None}


def check_whole_tokens(block: Size3, token: Size3, size: Size3) -> None:
    """Raise ValueError naming `mask_block` unless it is a multiple of the token and divides the patch."""
    if any(b % t or n % b for n, b, t in zip(size, block, token)):
        raise ValueError(
            f"mask_block={list(block)}: must be a multiple of the backbone's token {list(token)} "
            f"and divide the patch {list(size)}"
        )


def hidden_tokens(blocks: Tensor, block: Size3, token: Size3) -> Tensor:
    """Hidden blocks (B,gD,gH,gW) -> (B,N) hidden tokens, row-major over (D,H,W) as the tokens are."""
    for axis, (b, t) in enumerate(zip(block, token), start=1):
        blocks = blocks.repeat_interleave(b // t, dim=axis)
    return blocks.flatten(1)


def valid_tokens(batch: RegionBatch, token: Size3) -> Tensor:
    """(B,N) bool: the tokens that hold a valid voxel, row-major over (D,H,W). Padding is not asked for."""
    return nn.functional.max_pool3d(batch.valid_mask().float(), token, token).flatten(1) > 0


def visible_tokens(mask: BlockMask, size: Size3, token: Size3) -> int:
    """How many tokens of an image of `size` a mask leaves visible: the same K for every sample."""
    return (math.prod(mask.grid(size)) - mask.count(size)) * (math.prod(mask.block) // math.prod(token))


def kept(hidden: Tensor, visible: int) -> Tensor:
    """Hidden tokens (B,N) bool -> (B,K) int64: the places of the `visible` others, in the tokens' order."""
    return hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :visible]


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """(B,N,C) and places (B,K) -> (B,K,C)."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def put_back(tokens: Tensor, index: Tensor, mask_token: Tensor, count: int) -> Tensor:
    """(B,K,C) at places (B,K), and `mask_token` (1,1,C) at all others -> (B,count,C). The inverse of `take`."""
    x = mask_token.to(tokens.dtype).expand(len(tokens), count, -1)
    return x.scatter(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]), tokens)


class TokenDecoder(nn.Module):
    """Encodes visible tokens, fills mask tokens in between, and rebuilds voxels with a light transformer.

    Shapes: N tokens of the patch, K of them visible (the same K for every sample), C features, P voxels a token.
    Raises ValueError naming `mask_block` unless it is a multiple of the token and divides the patch.
    """

    def __init__(self, backbone: TokenBackbone, mask: BlockMask, size: Size3, dim: int, depth: int) -> None:
        super().__init__()
        token = backbone.patch_size
        check_whole_tokens(mask.block, token, size)
        if dim < 32 or dim % 32:
            raise ValueError(f"decoder_dim={dim}: must be a multiple of 32 (the width of an attention head)")
        if depth < 1:
            raise ValueError(f"decoder_depth={depth}: at least 1")
        self.token = token
        self.block = mask.block
        voxels = math.prod(token)
        self.visible = visible_tokens(mask, size, token)  # K
        self.enter = nn.Linear(backbone.embed_dim, dim)
        self.place = nn.Linear(backbone.embed_dim, dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        layer = nn.TransformerEncoderLayer(
            dim, dim // 32, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.leave = nn.Linear(dim, backbone.in_channels * voxels)

    def forward(self, backbone: TokenBackbone, visible: Tensor, blocks: Tensor) -> Tensor:
        """Masked image (B,C,D,H,W) and hidden blocks (B,gD,gH,gW) -> rebuilt image (B,C,D,H,W)."""
        grid = backbone.grid(visible.shape[2:])
        hidden = hidden_tokens(blocks, self.block, self.token)
        index = kept(hidden, self.visible)
        tokens = take(backbone.embed(visible), index)
        entered = self.enter(backbone.blocks(tokens, grid, index=index)[-1])
        x = put_back(entered, index, self.mask_token, hidden.shape[1])
        x = self.layers(x + self.place(backbone.positions(grid)))
        return unpatchify(self.leave(x), grid, self.token)


def unpatchify(tokens: Tensor, grid: Size3, token: Size3) -> Tensor:
    """(B, N, C*P) with N = grid D*H*W and P = token voxels, both row-major -> (B,C,D,H,W)."""
    x = tokens.unflatten(2, (-1, *token)).unflatten(1, grid)  # (B, gD,gH,gW, C, pD,pH,pW)
    x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
