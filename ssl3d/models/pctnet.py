"""PCT-Net: a pyramid of convolutions beside shifted-window attention, the network of MIS-FM (Volume Fusion)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.networks.nets.swin_unetr import BasicLayer
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.models.backbone import Backbone, BackboneSpec, check_image, outermost
from ssl3d.models.nnunet import cumulative
from ssl3d.regions import Size3

Size = Literal["tiny", "B"]
ResolutionMode = Literal[0, 1, 2]

# (features a scale, windows of attention at strides 4, 8, 16). B is MIS-FM's at its patch of 64x128x128, where the last
# window of 6 shrinks to the grid of 4.
_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, int, int]]] = {
    "tiny": ((4, 8, 16, 32, 64), (4, 4, 4)),
    "B": ((24, 48, 128, 256, 512), (6, 6, 4)),
}
_HEADS = (4, 8, 16)
_DEPTH = 2
# Whether the two scales of the embedding convolve and pool along the first axis too.
_VOLUMETRIC: dict[int, tuple[bool, bool]] = {0: (True, True), 1: (False, True), 2: (False, False)}


def _conv(in_channels: int, channels: int, volumetric: bool) -> nn.Conv3d:
    if volumetric:
        return nn.Conv3d(in_channels, channels, 3, padding=1)
    return nn.Conv3d(in_channels, channels, (1, 3, 3), padding=(0, 1, 1))


def _stride(volumetric: bool) -> Size3:
    return (2, 2, 2) if volumetric else (1, 2, 2)


class ConvBlock(nn.Module):
    """Two pre-activated convolutions: batch norm, PReLU, convolution; the second behind dropout."""

    def __init__(self, channels: int, volumetric: bool, dropout: float) -> None:
        super().__init__()
        self.conv_conv = nn.Sequential(
            nn.BatchNorm3d(channels),
            nn.PReLU(),
            _conv(channels, channels, volumetric),
            nn.BatchNorm3d(channels),
            nn.PReLU(),
            nn.Dropout(dropout),
            _conv(channels, channels, volumetric),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> the same shape."""
        return self.conv_conv(x)


class DownSample(nn.Module):
    """A max pool and a pre-activated convolution."""

    def __init__(self, in_channels: int, channels: int, pool_first_axis: bool, volumetric: bool) -> None:
        super().__init__()
        self.stride = _stride(pool_first_axis)
        self.conv = nn.Sequential(nn.BatchNorm3d(in_channels), nn.PReLU(), _conv(in_channels, channels, volumetric))

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,channels,D/s,H/s,W/s)."""
        return self.conv(F.max_pool3d(x, self.stride))


class UpCatBlock(nn.Module):
    """Upsampled coarse features beside the skip, and a pre-activated convolution of both."""

    def __init__(self, channels: int, in_channels: int, up_first_axis: bool, volumetric: bool) -> None:
        super().__init__()
        stride = _stride(up_first_axis)
        self.up = nn.Sequential(
            nn.BatchNorm3d(in_channels), nn.PReLU(), nn.ConvTranspose3d(in_channels, channels, stride, stride)
        )
        self.conv = nn.Sequential(nn.BatchNorm3d(2 * channels), nn.PReLU(), _conv(2 * channels, channels, volumetric))

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """(B,channels,s*D,...) and (B,in_channels,D,...) -> (B,channels,s*D,...)."""
        return self.conv(torch.cat((skip, self.up(x)), dim=1))


class ConvTransBlock(nn.Module):
    """The sum of a convolutional block and two blocks of shifted-window attention on the same input."""

    def __init__(self, channels: int, heads: int, window: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.conv = ConvBlock(channels, True, dropout)
        self.pos_drop = nn.Dropout(dropout)
        self.trans = BasicLayer(
            channels,
            _DEPTH,
            heads,
            (window, window, window),
            drop_path,  # type: ignore[arg-type]  # one rate for every block, which MONAI takes too
            qkv_bias=True,
            drop=dropout,
            attn_drop=dropout,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> the same shape."""
        return self.conv(x) + self.trans(self.pos_drop(x))


class PatchEmbedding(nn.Module):
    """Three scales of convolutions in front of the pyramid."""

    def __init__(self, in_channels: int, channels: Sequence[int], mode: int) -> None:
        super().__init__()
        a, b = _VOLUMETRIC[mode]
        self.proj = _conv(in_channels, channels[0], a)
        self.conv0 = ConvBlock(channels[0], a, 0.0)
        self.down1 = DownSample(channels[0], channels[1], a, b)
        self.conv1 = ConvBlock(channels[1], b, 0.0)
        self.down2 = DownSample(channels[1], channels[2], b, True)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> three maps, finest first."""
        x0 = self.conv0(self.proj(x))
        x1 = self.conv1(self.down1(x0))
        return [x0, x1, self.down2(x1)]


class PyramidConvTrans(nn.Module):
    """The three coarse scales, down and up again."""

    def __init__(self, channels: Sequence[int], windows: Sequence[int], dropout: float, drop_path: float) -> None:
        super().__init__()

        def block(scale: int) -> ConvTransBlock:
            return ConvTransBlock(channels[scale], _HEADS[scale], windows[scale], dropout, drop_path)

        self.convtrans_e2, self.convtrans_e3, self.convtrans_e4 = block(0), block(1), block(2)
        self.convtrans_d2, self.convtrans_d3 = block(0), block(1)
        pairs = list(itertools.pairwise(channels))
        self.down3, self.down4 = (DownSample(fine, coarse, True, True) for fine, coarse in pairs)
        self.up3, self.up4 = (UpCatBlock(fine, coarse, True, True) for fine, coarse in pairs)


class PredictionHead(nn.Module):
    """The two finest scales of the decoder."""

    def __init__(self, channels: Sequence[int], mode: int) -> None:
        super().__init__()
        a, b = _VOLUMETRIC[mode]
        self.up1 = UpCatBlock(channels[0], channels[1], a, a)
        self.up2 = UpCatBlock(channels[1], channels[2], b, b)
        self.conv0 = ConvBlock(channels[0], a, 0.0)
        self.conv1 = ConvBlock(channels[1], b, 0.0)


class PCTNet(Backbone):
    """PCT-Net without segmentation heads: convolutions at strides 1 and 2, convolutions beside attention at 4, 8, 16.

    `size`: tiny (CPU) | B (MIS-FM's). `resolution_mode`: 0 for isotropic scans; 1 and 2 leave the first, or the first
    two, pools and their convolutions in plane (total stride 16x16x16, 8x16x16, 4x16x16), for thick slices along the
    first axis. `dropout` and `drop_path`: rates inside the three coarse scales, as published.

    Names are MIS-FM's, of the chosen resolution mode's embedding and head alone (`embeddings.M.`, `pred_heads.M.`; it
    builds all three), without its output layers and an unused norm, and with MONAI's names in the attention's MLP
    (`linear1`, `linear2` for `fc1`, `fc2`). The attention's bias index is corrected; the published one, a buffer by the
    same name in which 291 of 1331 offsets are told apart, replaces it when it is loaded.
    Weights are drawn from torch's global generator. Raises ValueError naming the key. Wang et al., arXiv 2306.16925.
    """

    def __init__(
        self,
        size: Size = "B",
        in_channels: int = 1,
        resolution_mode: ResolutionMode = 0,
        dropout: float = 0.2,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        if size not in _SIZES:
            raise ValueError(f"model.size is {size!r}; it must be one of {', '.join(_SIZES)}")
        if in_channels < 1:
            raise ValueError(f"model.in_channels is {in_channels}; it must be at least 1")
        if resolution_mode not in _VOLUMETRIC:
            raise ValueError(f"model.resolution_mode is {resolution_mode!r}; it must be one of 0, 1, 2")
        for key, rate in (("dropout", dropout), ("drop_path", drop_path)):
            if not 0 <= rate < 1:
                raise ValueError(f"model.{key} is {rate}; it must be at least 0 and below 1")
        self.size, self.in_channels, self.resolution_mode = size, in_channels, resolution_mode
        self.dropout, self.drop_path = dropout, drop_path
        self.channels, windows = _SIZES[size]
        steps = [_stride(v) for v in (*_VOLUMETRIC[resolution_mode], True, True)]
        self.strides = tuple(cumulative([(1, 1, 1), *steps]))
        self.decoder_channels = self.channels[:-1]
        self._mode = str(resolution_mode)
        self.embeddings = nn.ModuleDict({self._mode: PatchEmbedding(in_channels, self.channels, resolution_mode)})
        self.pyramid_ct = PyramidConvTrans(self.channels[2:], windows, dropout, drop_path)
        self.pred_heads = nn.ModuleDict({self._mode: PredictionHead(self.channels, resolution_mode)})

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> five feature maps, finest first. Raises ValueError on a wrong size or channel count."""
        check_image(self, x)
        pyramid = self.pyramid_ct
        x0, x1, x2 = self.embeddings[self._mode](x)
        x2 = pyramid.convtrans_e2(x2)
        x3 = pyramid.convtrans_e3(pyramid.down3(x2))
        return [x0, x1, x2, x3, pyramid.convtrans_e4(pyramid.down4(x3))]

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """Encoder features -> decoder features of scales down_to, ..., 3, finest first, before any head."""
        self.check_down_to(down_to)
        pyramid = self.pyramid_ct
        head: Any = self.pred_heads[self._mode]
        stages = (
            (head.up1, head.conv0),
            (head.up2, head.conv1),
            (pyramid.up3, pyramid.convtrans_d2),
            (pyramid.up4, pyramid.convtrans_d3),
        )
        x, outputs = features[-1], []
        for scale in range(3, down_to - 1, -1):
            up, block = stages[scale]
            x = block(up(features[scale], x))
            outputs.append(x)
        return outputs[::-1]

    def segments(self) -> list[nn.Module]:
        """The convolutional blocks, and those beside attention."""
        return outermost(self, (ConvTransBlock, ConvBlock, UpCatBlock))

    def spec(self) -> BackboneSpec:
        """Constructor arguments."""
        kwargs = {
            "size": self.size,
            "in_channels": self.in_channels,
            "resolution_mode": self.resolution_mode,
            "dropout": self.dropout,
            "drop_path": self.drop_path,
        }
        return BackboneSpec("ssl3d.models.pctnet.PCTNet", kwargs)

    def encoder_parameter_names(self) -> set[str]:
        """The embedding's, and the pyramid's way down."""
        encoder = ("embeddings.", "pyramid_ct.down", "pyramid_ct.convtrans_e")
        return {name for name in self.state_dict() if name.startswith(encoder)}
