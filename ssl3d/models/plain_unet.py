"""nnU-Net's plain convolutional U-Net as a backbone, from nnU-Net's own building blocks, so that names match."""

from __future__ import annotations

from typing import Any, Literal

from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He

from ssl3d.models.nnunet import NNUNetBackbone

Size = Literal["S", "L"]

_STAGES: dict[str, dict[str, list[int]]] = {
    "S": {"features_per_stage": [16, 32, 64, 128], "n_conv_per_stage": [1, 1, 1, 1]},
    "L": {"features_per_stage": [32, 64, 128, 256, 320, 320], "n_conv_per_stage": [2, 2, 2, 2, 2, 2]},
}


class PlainConvUNet(NNUNetBackbone):
    """nnU-Net's PlainConvUNet, its default network before ResEnc, without its segmentation heads.

    `size`: `S` is made for CPUs (4 stages, 16-128 features, stride 8, one convolution a stage); `L` is what nnU-Net
    plans for large isotropic scans (6 stages, 32-320 features, stride 32, two convolutions a stage, in the decoder
    too). `in_channels`: image channels. `arch_kwargs` overrides any of nnU-Net's architecture keys (n_stages,
    features_per_stage, kernel_sizes, strides, n_conv_per_stage, n_conv_per_stage_decoder, conv_op, norm_op, ...), one
    entry a stage: the `arch_kwargs` of a plans file can be given whole.

    Weights are drawn from torch's global generator as nnU-Net draws them (He). Raises ValueError naming the key.
    Isensee et al., "nnU-Net", Nature Methods 2021, arXiv 1809.10486.
    """

    target = "ssl3d.models.plain_unet.PlainConvUNet"
    network_class = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    stem = "encoder.stages.0.0.convs.0.conv.weight"

    def __init__(self, size: Size = "L", in_channels: int = 1, arch_kwargs: dict[str, Any] | None = None) -> None:
        decoder_convs = 2 if size == "L" else 1
        super().__init__(size, in_channels, arch_kwargs, PlainConvEncoder, _STAGES, decoder_convs)
        self.apply(InitWeights_He(1e-2))
