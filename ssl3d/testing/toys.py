"""Small synthetic batches and a tiny backbone for tests: no files, no downloads, milliseconds on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.models.backbone import Backbone, BackboneSpec
from ssl3d.regions import RegionBatch, Size3


def make_batch(
    size: Size3 = (16, 32, 48),
    batch: int = 2,
    channels: int = 1,
    spacing: Sequence[float] = (3.0, 1.0, 0.8),
    padded: int = 0,
    labels: bool = False,
    seed: int = 0,
) -> RegionBatch:
    """A normalised RegionBatch of smooth random images, non-cubic and anisotropic (mm, z y x) by default.

    `padded`: planes at the end of the last axis that are not valid (air); with 0 `valid` is None. Every sample lies
    elsewhere in its volume and has its own affine, on the store's grid (z to Superior, y to Posterior, x to Left).
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((batch, channels, *(max(2, n // 4) for n in size)), generator=generator)
    image = F.interpolate(coarse, size=size, mode="trilinear")
    valid = None
    if padded:
        valid = torch.ones((batch, 1, *size), dtype=torch.bool)
        valid[..., -padded:] = False
        image = torch.where(valid, image, -2.0)
    affine = torch.zeros((batch, 4, 4), dtype=torch.float64)
    affine[:, 0, 2], affine[:, 1, 1], affine[:, 2, 0] = -spacing[2], -spacing[1], spacing[0]
    affine[:, :3, 3] = 100 * torch.randn((batch, 3), generator=generator, dtype=torch.float64)
    affine[:, 3, 3] = 1
    shape = torch.tensor(size).repeat(batch, 1) + 40
    one = torch.ones((batch, channels))
    return RegionBatch(
        image=image,
        slope=one,
        intercept=0 * one,
        low=-2 * one,
        high=2 * one,
        mean=0 * one,
        std=one,
        start=torch.randint(-4, 20, (batch, 3), generator=generator),
        volume_shape=shape,
        spacing=torch.tensor(spacing, dtype=torch.float32).repeat(batch, 1),
        affine=affine,
        foreground_box=torch.stack([torch.zeros_like(shape), shape], dim=1),
        volume=torch.arange(batch),
        seed=torch.randint(2**62, (batch,), generator=generator),
        label=(image[:, :1] > 0).long() if labels else None,
        valid=valid,
    )


class TinyUNet(Backbone):
    """Two scales (strides 1 and 2), a few thousand parameters: a convolutional backbone with a decoder, for tests."""

    def __init__(self, in_channels: int = 1, width: int = 8) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.width = width
        self.channels = (width, 2 * width)
        self.strides = ((1, 1, 1), (2, 2, 2))
        self.decoder_channels = (width, 2 * width)
        self.fine = nn.Conv3d(in_channels, width, 3, padding=1)
        self.coarse = nn.Conv3d(width, 2 * width, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.merge = nn.Conv3d(2 * width, width, 3, padding=1)

    def encode(self, x: Tensor) -> list[Tensor]:
        fine = F.gelu(self.fine(x))
        return [fine, F.gelu(self.coarse(fine))]

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        fine, coarse = features
        if down_to == 1:
            return [coarse]
        return [F.gelu(self.merge(torch.cat([fine, self.up(coarse)], dim=1))), coarse]

    def pool(self, features: Sequence[Tensor]) -> Tensor:
        return features[-1].mean(dim=(2, 3, 4))

    def spec(self) -> BackboneSpec:
        return BackboneSpec("ssl3d.testing.toys.TinyUNet", {"in_channels": self.in_channels, "width": self.width})

    def encoder_parameter_names(self) -> set[str]:
        return {name for name in self.state_dict() if name.split(".")[0] in ("fine", "coarse")}
