"""Networks of the real libraries with random weights, saved as their programs publish them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl3d.testing.backbone import randomise


@pytest.fixture
def save(tmp_path):
    """save(content, name) -> the path of a file that torch.save wrote."""

    def write(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def randomised():
    """randomised(network) -> it, in eval mode, with random parameters and running statistics."""

    def draw(network: nn.Module, seed: int = 0) -> nn.Module:
        randomise(network, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        return network.eval()

    return draw


@pytest.fixture
def volume():
    """volume(shape, channels=2) -> a random image (2, C, D, H, W)."""

    def draw(*size: int, channels: int = 2) -> torch.Tensor:
        return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(5))

    return draw


@pytest.fixture
def resenc(randomised):
    """resenc(**changes) -> nnU-Net's own ResidualEncoderUNet, small, two channels, anisotropic."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    def build(**changes):
        kwargs = {
            "input_channels": 2, "n_stages": 3, "features_per_stage": [4, 6, 8], "conv_op": nn.Conv3d,
            "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
            "n_blocks_per_stage": [1, 2, 1], "num_classes": 3, "n_conv_per_stage_decoder": [1, 1], "conv_bias": True,
            "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU,
            "nonlin_kwargs": {"inplace": True}, "deep_supervision": False,
        }  # fmt: skip
        return randomised(ResidualEncoderUNet(**(kwargs | changes)))

    return build
