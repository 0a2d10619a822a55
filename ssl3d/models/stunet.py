"""STU-Net: a scalable and transferable residual U-Net, S to H."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.models.backbone import BackboneSpec, StagedBackbone, check_image, check_normalisable, outermost
from ssl3d.models.nnunet import cumulative
from ssl3d.regions import Size3

Size = Literal["tiny", "S", "B", "L", "H"]

# (features of the first stage, residual blocks a stage); S to H are those of the paper, `tiny` is made for CPUs.
SIZES = {"tiny": (8, 1), "S": (16, 1), "B": (32, 1), "L": (64, 2), "H": (96, 3)}
_WIDTHS = (1, 2, 4, 8, 16, 16)


class BasicResBlock(nn.Module):
    """Two convolutions with instance norm, added to the input, or to its 1x1x1 convolution (`project`)."""

    def __init__(self, in_channels: int, channels: int, stride: Size3 = (1, 1, 1), project: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, channels, 3, stride, padding=1)
        self.norm1 = nn.InstanceNorm3d(channels, affine=True)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.InstanceNorm3d(channels, affine=True)
        self.conv3 = nn.Conv3d(in_channels, channels, 1, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,channels,D/s,H/s,W/s)."""
        y = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        y = self.norm2(self.conv2(y))
        return F.leaky_relu(y + (x if self.conv3 is None else self.conv3(x)), 0.01)


class UpsampleLayer(nn.Module):
    """A 1x1x1 convolution and nearest-neighbour upsampling: in this order, which gives the same for 1/8 of the work."""

    def __init__(self, in_channels: int, channels: int, stride: Size3) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, channels, 1)
        self.scale = [float(s) for s in stride]

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,channels,s*D,s*H,s*W)."""
        return F.interpolate(self.conv(x), scale_factor=self.scale, mode="nearest")


class STUNet(StagedBackbone):
    """STU-Net without its segmentation heads: six stages of residual blocks, upsampling without learned kernels.

    `size`: tiny (CPU) | S | B | L | H: 8, 16, 32, 64, 96 features in the first stage, 16 times as many in the last.
    `strides`: five triples (D, H, W), of each stage to the one before; all 2 when null (total stride 32). Weights do
    not depend on them, so that published ones fit anisotropic data, where STU-Net pads the plan's strides with 1s.

    Scale i of `encode` is the output of stage i; the coarsest has no decoder stage. Names are STU-Net's without
    `seg_outputs.`. Weights are drawn from torch's global generator (He). Raises ValueError naming the key.
    Huang et al., arXiv 2304.06716.
    """

    def __init__(self, size: Size = "B", in_channels: int = 1, strides: tuple[Size3, ...] | None = None) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"model.size is {size!r}; it must be one of {', '.join(SIZES)}")
        if in_channels < 1:
            raise ValueError(f"model.in_channels is {in_channels}; it must be at least 1")
        if strides is not None and (len(strides) != 5 or any(len(s) != 3 or min(s) < 1 for s in strides)):
            raise ValueError(f"model.strides is {strides}; it must hold 5 triples (D, H, W) of at least 1")
        steps: list[Size3] = [(2, 2, 2)] * 5 if strides is None else [(d, h, w) for d, h, w in strides]
        self.size, self.in_channels = size, in_channels
        self._strides = None if strides is None else [list(s) for s in steps]
        width, depth = SIZES[size]
        self.channels = tuple(width * w for w in _WIDTHS)
        self.strides = tuple(cumulative([(1, 1, 1), *steps]))
        self.decoder_channels = self.channels[:-1]

        stages = zip((in_channels, *self.channels), self.channels, [(1, 1, 1), *steps])
        self.conv_blocks_context = nn.ModuleList(_stage(a, b, depth, stride) for a, b, stride in stages)
        ups = list(zip(self.channels[:0:-1], self.channels[-2::-1], reversed(steps)))
        self.upsample_layers = nn.ModuleList(UpsampleLayer(a, b, stride) for a, b, stride in ups)
        self.conv_blocks_localization = nn.ModuleList(_stage(2 * b, b, depth) for _, b, _ in ups)
        self.apply(InitWeights_He(1e-2))

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> six feature maps, finest first. Raises ValueError on a wrong size or channel count."""
        check_image(self, x)
        features = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            features.append(x)
        return features

    def encoder_stages(self) -> list[list[nn.Module]]:
        """The stages of residual blocks."""
        return [[stage] for stage in self.conv_blocks_context]

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """Encoder features -> decoder features of scales down_to, ..., 4, finest first, before any head."""
        self.check_down_to(down_to)
        x, outputs = features[-1], []
        for i in range(5 - down_to):
            x = torch.cat((self.upsample_layers[i](x), features[4 - i]), dim=1)
            x = self.conv_blocks_localization[i](x)
            outputs.append(x)
        return outputs[::-1]

    def segments(self) -> list[nn.Module]:
        """The residual blocks of both ways."""
        return outermost(self, (BasicResBlock,))

    def spec(self) -> BackboneSpec:
        """Constructor arguments."""
        kwargs = {"size": self.size, "in_channels": self.in_channels, "strides": self._strides}
        return BackboneSpec("ssl3d.models.stunet.STUNet", kwargs)

    def encoder_parameter_names(self) -> set[str]:
        """Every name below `conv_blocks_context.`."""
        return {name for name in self.state_dict() if name.startswith("conv_blocks_context.")}

    def check_size(self, size: Sequence[int]) -> None:
        """Raise ValueError when `size` (D,H,W) is no multiple of the stride, or leaves one voxel to normalise."""
        super().check_size(size)
        check_normalisable(self, size)


def _stage(in_channels: int, channels: int, depth: int, stride: Size3 = (1, 1, 1)) -> nn.Sequential:
    """`depth` blocks, the first of which changes stride and features."""
    first = BasicResBlock(in_channels, channels, stride, project=True)
    return nn.Sequential(first, *(BasicResBlock(channels, channels) for _ in range(depth - 1)))
