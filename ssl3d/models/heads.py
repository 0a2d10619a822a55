"""Heads from encoder or decoder features to class logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.models.backbone import Backbone


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B,C,d,h,w) -> (B,C,*size), trilinear between voxel centres, in the dtype it comes in."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


def upsampled_at(features: Tensor, voxels: NDArray[np.int64], size: Sequence[int]) -> Tensor:
    """(1,C,d,h,w) upsampled to `size`, as `upsample` does, at `voxels` (N,3) alone: (N,C) float32."""
    relative = (torch.from_numpy(voxels) + 0.5) / torch.tensor(tuple(size)) * 2 - 1  # grid_sample's coordinates, z y x
    grid = relative.flip(-1).float()[None, :, None, None].to(features.device)
    sampled = F.grid_sample(features.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[0, :, :, 0, 0].T


class StageHead(nn.Module):
    """A linear layer on ALL encoder stages, each upsampled to full resolution: features -> logits (B,K,D,H,W).

    Upsampling and a 1x1x1 convolution commute, so every stage is projected to K channels first: the same numbers for a
    small part of the memory.
    """

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv3d(c, out_channels, 1, bias=i == 0) for i, c in enumerate(channels))

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        logits = [upsample(project(f), size) for project, f in zip(self.projections, features)]
        return torch.stack(logits).sum(dim=0) if len(logits) > 1 else logits[0]


class VoxelHead(nn.Module):
    """A 1x1x1 convolution on the decoder's finest features, upsampled where they are coarser than the image."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv3d(channels, out_channels, 1)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        return upsample(self.projection(features[0]), size)


def make_head(backbone: Backbone, out_channels: int) -> StageHead | VoxelHead:
    """A fresh segmentation head: a VoxelHead, or a StageHead on the encoder of a backbone without a decoder."""
    if backbone.decoder_channels:
        return VoxelHead(backbone.decoder_channels[0], out_channels)
    return StageHead(backbone.channels, out_channels)
