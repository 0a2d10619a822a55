"""3D ResNets (10 to 200) as encoders: MONAI's network, built so that MedicalNet's weights fit by name and shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from monai.networks.nets.resnet import ResNet as MonaiResNet
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.models.backbone import Backbone, BackboneSpec, check_image

Depth = Literal[10, 18, 34, 50, 101, 152, 200]
Shortcut = Literal["auto", "A", "B"]

# (block, blocks a layer, how a layer's first block brings its input along): as MedicalNet's weights need it.
DEPTHS: dict[int, tuple[str, list[int], str]] = {
    10: ("basic", [1, 1, 1, 1], "B"),
    18: ("basic", [2, 2, 2, 2], "A"),
    34: ("basic", [3, 4, 6, 3], "A"),
    50: ("bottleneck", [3, 4, 6, 3], "B"),
    101: ("bottleneck", [3, 4, 23, 3], "B"),
    152: ("bottleneck", [3, 8, 36, 3], "B"),
    200: ("bottleneck", [3, 24, 36, 3], "B"),
}


class Subsample(nn.Module):
    """Shortcut A: every stride-th voxel, new features zero. MONAI's and MedicalNet's keep its gradient from flowing."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,channels,D/s,H/s,W/s)."""
        s = self.stride
        return F.pad(x[:, :, ::s, ::s, ::s], (0, 0, 0, 0, 0, 0, 0, self.channels - x.shape[1]))


class ResNet(Backbone):
    """A 3D ResNet without decoder and classifier: a 7^3 stem, a max pool and four layers, with batch norm.

    `depth`: 10 | 18 | 34 | 50 | 101 | 152 | 200. `dilated`: how MedicalNet trained its weights: layers 3 and 4 keep
    layer 2's stride of 8 and dilate their kernels by 2 and 4; `encode` then gives scales of strides 2, 4, 8 (the stem,
    layer 1, layer 4), else 2, 4, 8, 16, 32 (the stem, then each layer). Weights fit either way. `width` multiplies all
    features; below 1 for CPUs. `shortcut`: how a layer's first block brings its input along: A (strided, new features
    zero), B (a 1^3 convolution and norm) or auto, as MedicalNet's weights of this depth have it (A for 18 and 34).

    Names are MONAI's and MedicalNet's (without its `module.`). Weights are drawn from torch's global generator. Raises
    ValueError naming the key. He et al., arXiv 1512.03385; Chen et al. (MedicalNet), arXiv 1904.00625.
    """

    def __init__(
        self,
        depth: Depth = 50,
        in_channels: int = 1,
        dilated: bool = False,
        width: float = 1.0,
        shortcut: Shortcut = "auto",
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"model.depth is {depth!r}; it must be one of {', '.join(map(str, DEPTHS))}")
        if in_channels < 1:
            raise ValueError(f"model.in_channels is {in_channels}; it must be at least 1")
        if 64 * width < 1:
            raise ValueError(f"model.width is {width}; it must be at least 1/64 (a feature in the first layer)")
        if shortcut not in ("auto", "A", "B"):
            raise ValueError(f"model.shortcut is {shortcut!r}; it must be one of auto, A, B")
        block, layers, published = DEPTHS[depth]
        if shortcut == "A" and block == "bottleneck":
            raise ValueError(f"model.shortcut is 'A', which a ResNet-{depth} of bottlenecks has not; use B or auto")
        self.depth, self.in_channels, self.dilated, self.width = depth, in_channels, dilated, width
        self.shortcut = shortcut
        used = published if shortcut == "auto" else shortcut
        network = MonaiResNet(
            block,
            layers,
            [64, 128, 256, 512],
            n_input_channels=in_channels,
            conv1_t_stride=2,
            shortcut_type=used,
            widen_factor=width,
            feed_forward=False,
            bias_downsample=False,
        )
        self.conv1, self.bn1, self.maxpool = network.conv1, network.bn1, network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        planes = [int(64 * 2**i * width) for i in range(4)]
        outputs = [p * (4 if block == "bottleneck" else 1) for p in planes]
        if used == "A":
            for layer, channels in zip((self.layer2, self.layer3, self.layer4), outputs[1:]):
                layer[0].downsample = Subsample(channels, stride=2)
        if dilated:
            _dilate(self.layer3, 2)
            _dilate(self.layer4, 4)
        kept = (0, 3) if dilated else (0, 1, 2, 3)
        self.channels = (planes[0], *(outputs[i] for i in kept))
        self.strides = tuple((s, s, s) for s in (2, 4, 8, 16, 32)[: len(self.channels)])

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> feature maps, finest first. Raises ValueError on a wrong size or channel count."""
        check_image(self, x)
        features = [F.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(features[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return [features[i] for i in (0, 1, 4)] if self.dilated else features

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """Refused by a ValueError: a ResNet has no decoder."""
        raise ValueError("decode: a ResNet has no decoder")

    def segments(self) -> list[nn.Module]:
        """The residual blocks."""
        return [*self.layer1, *self.layer2, *self.layer3, *self.layer4]

    def spec(self) -> BackboneSpec:
        """Constructor arguments."""
        kwargs = {
            "depth": self.depth,
            "in_channels": self.in_channels,
            "dilated": self.dilated,
            "width": self.width,
            "shortcut": self.shortcut,
        }
        return BackboneSpec("ssl3d.models.resnet.ResNet", kwargs)

    def encoder_parameter_names(self) -> set[str]:
        """Every name."""
        return set(self.state_dict())


def _dilate(layer: nn.Module, dilation: int) -> None:
    """Turn a layer's stride of 2 into a dilation of its 3^3 kernels, in place; weights keep their shapes."""
    for module in layer.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = (1, 1, 1)
            if module.kernel_size == (3, 3, 3):
                module.dilation = module.padding = (dilation,) * 3
        elif isinstance(module, Subsample):
            module.stride = 1
