"""STUNet: the conformance suite, the published sizes and names."""

import pytest
import torch
from torch.nn import functional as F

from ssl3d.models.stunet import STUNet
from ssl3d.testing.backbone import BackboneTests, randomise

STRIDES = ((1, 2, 2), (2, 2, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2))  # 4 x 8 x 4 in all


class TestSTUNet(BackboneTests):
    def make(self, in_channels=1):
        return STUNet("tiny", in_channels, STRIDES)


@pytest.mark.parametrize(("size", "millions"), [("S", 14.60), ("B", 58.26), ("L", 440.30), ("H", 1457.33)])
def test_sizes_are_the_papers(size, millions):
    """Parameters as published: one input channel and segmentation heads of 105 classes at five scales."""
    with torch.device("meta"):
        network = STUNet(size)
    heads = sum(105 * (c + 1) for c in network.decoder_channels)
    assert sum(p.numel() for p in network.parameters()) + heads == pytest.approx(millions * 1e6, rel=1e-3)
    assert network.total_stride == (32, 32, 32)


def test_names_are_the_published_ones():
    with torch.device("meta"):
        names = set(STUNet("L").state_dict())
    blocks = [f"conv_blocks_context.{i}" for i in range(6)] + [f"conv_blocks_localization.{i}" for i in range(5)]
    expected = {f"upsample_layers.{i}.conv.{p}" for i in range(5) for p in ("weight", "bias")}
    for block in blocks:
        for i, layers in enumerate(
            (("conv1", "norm1", "conv2", "norm2", "conv3"), ("conv1", "norm1", "conv2", "norm2"))
        ):
            expected |= {f"{block}.{i}.{layer}.{p}" for layer in layers for p in ("weight", "bias")}
    assert names == expected


def test_weights_do_not_depend_on_strides():
    network, other = STUNet("tiny"), STUNet("tiny", strides=((1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)))
    other.load_state_dict(network.state_dict())
    assert other.total_stride == (4, 8, 8)


def test_convolution_before_upsampling_equals_the_published_order():
    layer = STUNet("tiny", strides=STRIDES).upsample_layers[0].double()
    randomise(layer)
    x = torch.randn(2, 128, 2, 3, 4, dtype=torch.float64)
    published = layer.conv(F.interpolate(x, scale_factor=(1.0, 1.0, 2.0), mode="nearest"))
    torch.testing.assert_close(layer(x), published, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": "XL"}, r"model\.size is 'XL'; it must be one of tiny, S, B, L, H"),
        ({"in_channels": 0}, r"model\.in_channels is 0"),
        ({"strides": ((2, 2, 2),)}, r"model\.strides is .* 5 triples"),
        ({"strides": ((2, 2, 0),) * 5}, r"model\.strides is .* 5 triples"),
    ],
)
def test_mistakes_name_their_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        STUNet(**{"size": "tiny", **kwargs})


def test_a_single_voxel_at_the_coarsest_scale_is_refused():
    with pytest.raises(ValueError, match="single voxel"):
        STUNet("tiny", strides=STRIDES).check_size((4, 8, 4))
