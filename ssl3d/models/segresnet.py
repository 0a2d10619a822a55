"""SegResNet: MONAI's residual U-Net with group norm, without its segmentation head, so that its weights fit by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet
from torch import Tensor, nn

from ssl3d.models.backbone import Backbone, BackboneSpec, check_image, outermost

Upsampling = Literal["nontrainable", "deconv"]


class SegResNet(Backbone):
    """SegResNet: pre-activation residual blocks with group norm, a light decoder that adds its skips.

    `init_filters`: features of the finest scale, a multiple of 8; each coarser scale has twice as many. `blocks_down`:
    residual blocks a scale, finest first; n scales have a total stride of 2^(n-1). `blocks_up`: blocks a decoder scale,
    coarsest first, one entry fewer. `upsample_mode`: nontrainable (trilinear) | deconv. The defaults are the paper's.

    Scale 0 of `decode` has passed the norm and activation in front of MONAI's last convolution (`conv_final.0`). Names
    are MONAI's without that convolution (`conv_final.2`). Weights are drawn from torch's global generator. Raises
    ValueError naming the key. Myronenko, arXiv 1810.11654.
    """

    def __init__(
        self,
        init_filters: int = 32,
        in_channels: int = 1,
        blocks_down: tuple[int, ...] = (1, 2, 2, 4),
        blocks_up: tuple[int, ...] = (1, 1, 1),
        upsample_mode: Upsampling = "nontrainable",
    ) -> None:
        super().__init__()
        if init_filters < 8 or init_filters % 8:
            raise ValueError(f"model.init_filters is {init_filters}; it must be a multiple of 8 (groups of the norm)")
        if in_channels < 1:
            raise ValueError(f"model.in_channels is {in_channels}; it must be at least 1")
        if len(blocks_down) < 2 or min(blocks_down) < 1:
            raise ValueError(f"model.blocks_down is {list(blocks_down)}; it must hold at least 2 numbers of at least 1")
        if len(blocks_up) != len(blocks_down) - 1 or min(blocks_up) < 1:
            raise ValueError(
                f"model.blocks_up is {list(blocks_up)}; it must hold {len(blocks_down) - 1} numbers of at least 1, one "
                "fewer than model.blocks_down"
            )
        if upsample_mode not in ("nontrainable", "deconv"):
            raise ValueError(f"model.upsample_mode is {upsample_mode!r}; it must be one of nontrainable, deconv")
        self.init_filters, self.in_channels, self.upsample_mode = init_filters, in_channels, upsample_mode
        self.blocks_down, self.blocks_up = tuple(blocks_down), tuple(blocks_up)
        network = MonaiSegResNet(
            init_filters=init_filters,
            in_channels=in_channels,
            out_channels=1,
            blocks_down=self.blocks_down,
            blocks_up=self.blocks_up,
            upsample_mode=upsample_mode,
        )
        self.convInit, self.down_layers = network.convInit, network.down_layers
        self.up_samples, self.up_layers = network.up_samples, network.up_layers
        self.conv_final = network.conv_final[:2]
        scales = range(len(blocks_down))
        self.channels = tuple(init_filters * 2**i for i in scales)
        self.strides = tuple((2**i, 2**i, 2**i) for i in scales)
        self.decoder_channels = self.channels[:-1]

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> one feature map a scale, finest first. Raises ValueError on a wrong size or channel count."""
        check_image(self, x)
        x, features = self.convInit(x), []
        for down in self.down_layers:
            x = down(x)
            features.append(x)
        return features

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """Encoder features -> decoder features of scales down_to, ..., n-2, finest first, before any head."""
        self.check_down_to(down_to)
        x, outputs = features[-1], []
        for i in range(len(self.up_layers) - down_to):
            x = self.up_layers[i](self.up_samples[i](x) + features[-(i + 2)])
            outputs.append(x)
        if down_to == 0:
            outputs[-1] = self.conv_final(x)
        return outputs[::-1]

    def segments(self) -> list[nn.Module]:
        """The residual blocks of both ways."""
        return outermost(self, (ResBlock,))

    def spec(self) -> BackboneSpec:
        """Constructor arguments."""
        kwargs = {
            "init_filters": self.init_filters,
            "in_channels": self.in_channels,
            "blocks_down": list(self.blocks_down),
            "blocks_up": list(self.blocks_up),
            "upsample_mode": self.upsample_mode,
        }
        return BackboneSpec("ssl3d.models.segresnet.SegResNet", kwargs)

    def encoder_parameter_names(self) -> set[str]:
        """Every name below `convInit.` and `down_layers.`."""
        return {name for name in self.state_dict() if name.startswith(("convInit.", "down_layers."))}
