"""The 3D U-Net of Models Genesis, also SuPreM's, written so that their weights fit by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.models.backbone import Backbone, BackboneSpec, check_image, outermost


class LUConv(nn.Module):
    """A 3^3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,channels,D,H,W)."""
        return F.relu(self.bn1(self.conv1(x)))


class DownTransition(nn.Module):
    """Two convolutions, the second with twice the features of the first."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(LUConv(in_channels, channels // 2), LUConv(channels // 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,channels,D,H,W)."""
        return self.ops(x)


class UpTransition(nn.Module):
    """Doubles the grid, appends the encoder's features, two convolutions."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(in_channels, in_channels, 2, 2)
        self.ops = nn.Sequential(LUConv(in_channels + channels, channels), LUConv(channels, channels))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B,in_channels,D,H,W) and (B,channels,2D,2H,2W) -> (B,channels,2D,2H,2W)."""
        return self.ops(torch.cat((self.up_conv(x), skip), dim=1))


class UNet3D(Backbone):
    """The U-Net of Models Genesis and SuPreM: four scales of strides 1, 2, 4, 8 with max pools, and batch norm.

    `width`: features of the first convolution, 32 in the published weights; scale i has 2^(i+1) times as many. Names
    are the published ones without `out_tr.`: `down_tr{64,128,256,512}.ops.{0,1}.{conv1,bn1}` and
    `up_tr{256,128,64}.{up_conv,ops.{0,1}.{conv1,bn1}}`, whatever the width. One difference: the published code
    normalises by the batch's own statistics in evaluation too, where this uses the running ones, as is usual: else a
    scan's prediction would depend on its neighbours in the batch.

    Weights are drawn from torch's global generator (torch's defaults). Raises ValueError naming the key.
    Zhou et al., arXiv 2004.07882; Li et al. (SuPreM), ICLR 2024.
    """

    def __init__(self, in_channels: int = 1, width: int = 32) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"model.in_channels is {in_channels}; it must be at least 1")
        if width < 1:
            raise ValueError(f"model.width is {width}; it must be at least 1")
        self.in_channels, self.width = in_channels, width
        self.channels = (2 * width, 4 * width, 8 * width, 16 * width)
        self.strides = tuple((s, s, s) for s in (1, 2, 4, 8))
        self.decoder_channels = self.channels[:-1]
        c0, c1, c2, c3 = self.channels
        self.down_tr64 = DownTransition(in_channels, c0)
        self.down_tr128 = DownTransition(c0, c1)
        self.down_tr256 = DownTransition(c1, c2)
        self.down_tr512 = DownTransition(c2, c3)
        self.up_tr256 = UpTransition(c3, c2)
        self.up_tr128 = UpTransition(c2, c1)
        self.up_tr64 = UpTransition(c1, c0)

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> four feature maps, finest first. Raises ValueError on a wrong size or channel count."""
        check_image(self, x)
        features = [self.down_tr64(x)]
        for down in (self.down_tr128, self.down_tr256, self.down_tr512):
            features.append(down(F.max_pool3d(features[-1], 2)))
        return features

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """Encoder features -> decoder features of scales down_to, ..., 2, finest first, before any head."""
        self.check_down_to(down_to)
        x, outputs = features[-1], []
        ups = (self.up_tr64, self.up_tr128, self.up_tr256)
        for scale in range(2, down_to - 1, -1):
            x = ups[scale](x, features[scale])
            outputs.append(x)
        return outputs[::-1]

    def segments(self) -> list[nn.Module]:
        """The scales of both ways."""
        return outermost(self, (DownTransition, UpTransition))

    def spec(self) -> BackboneSpec:
        """Constructor arguments."""
        return BackboneSpec("ssl3d.models.unet3d.UNet3D", {"in_channels": self.in_channels, "width": self.width})

    def encoder_parameter_names(self) -> set[str]:
        """Every name below `down_tr*.`."""
        return {name for name in self.state_dict() if name.startswith("down_tr")}
