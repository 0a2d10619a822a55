"""nnU-Net's Residual-Encoder U-Net as a backbone, from nnU-Net's own building blocks, so that names match."""

from __future__ import annotations

import copy
from typing import Any, Literal

from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He, init_last_bn_before_add_to_0

from ssl3d.models.nnunet import NNUNetBackbone

Size = Literal["S", "M", "L", "XL"]

_SMALL = {"features_per_stage": [16, 32, 64, 128], "n_blocks_per_stage": [1, 1, 2, 2]}
_NNUNET = {"features_per_stage": [32, 64, 128, 256, 320, 320], "n_blocks_per_stage": [1, 3, 4, 6, 6, 6]}
_STAGES: dict[str, dict[str, list[int]]] = {"S": _SMALL, "M": _NNUNET, "L": _NNUNET, "XL": _NNUNET}

# Patch (D, H, W) and regions a step and GPU, as nnU-Net plans them for large isotropic scans on 8, 24 and 40 GB.
_RECOMMENDED: dict[str, dict[str, Any]] = {
    "S": {"patch_size": (32, 48, 32), "batch_size": 2},
    "M": {"patch_size": (128, 128, 128), "batch_size": 2},
    "L": {"patch_size": (192, 192, 192), "batch_size": 2},
    "XL": {"patch_size": (256, 224, 224), "batch_size": 2},
}


class ResEncUNet(NNUNetBackbone):
    """nnU-Net's ResidualEncoderUNet without its segmentation heads.

    `size`: `S` is made for CPUs (4 stages, 16-128 features, stride 8). `L` is nnU-Net's ResEnc (6 stages, 32-320
    features, stride 32); `M` and `XL` are the SAME network under nnU-Net's other preset names and differ only in
    `recommended`, the patch and batch that fit their GPU memory. `in_channels`: image channels.
    `arch_kwargs` overrides any of nnU-Net's architecture keys (n_stages, features_per_stage, kernel_sizes, strides,
    n_blocks_per_stage, n_conv_per_stage_decoder, conv_op, norm_op, ...), one entry a stage: the `arch_kwargs` of a
    plans file can be given whole, so that the network is the one nnU-Net planned.

    Scale i of `encode` is the output of stage i, of `decode` the decoder stage at the same resolution; the coarsest
    scale has no decoder stage. Weights are drawn from torch's global generator as nnU-Net draws them (He, the last
    norm of each block zero). Raises ValueError naming the key. Isensee et al., "nnU-Net Revisited", arXiv 2404.09556.
    """

    target = "ssl3d.models.resenc.ResEncUNet"
    network_class = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    stem = "encoder.stem.convs.0.conv.weight"

    def __init__(self, size: Size = "L", in_channels: int = 1, arch_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(size, in_channels, arch_kwargs, ResidualEncoder, _STAGES, decoder_convs=1)
        self.recommended: dict[str, Any] = copy.deepcopy(_RECOMMENDED[size])
        self.apply(InitWeights_He(1e-2))
        self.apply(init_last_bn_before_add_to_0)
