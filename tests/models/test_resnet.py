"""ResNet: the conformance suite, equality with MONAI's network, MedicalNet's dilated form."""

import pytest
import torch
from monai.networks.nets.resnet import ResNetFeatures
from torch import nn

from ssl3d.models.resnet import ResNet
from ssl3d.testing.backbone import BackboneTests, randomise


class TestResNetBottleneck(BackboneTests):
    def make(self, in_channels=1):
        return ResNet(50, in_channels, width=1 / 16)


class TestResNetShortcutA(BackboneTests):
    def make(self, in_channels=1):
        return ResNet(18, in_channels, width=1 / 16)


class TestResNetDilated(BackboneTests):
    def make(self, in_channels=1):
        return ResNet(10, in_channels, dilated=True, width=1 / 8)


@pytest.mark.parametrize("depth", [10, 18])  # shortcuts B and A
def test_encode_equals_monais(depth):
    ours = ResNet(depth, 2).eval()
    real = ResNetFeatures(f"resnet{depth}", pretrained=False, in_channels=2).eval()
    real.load_state_dict(ours.state_dict())  # every name
    x = torch.randn(1, 2, 32, 64, 32)
    with torch.no_grad():
        for mine, theirs in zip(ours.encode(x), real(x), strict=True):
            assert torch.equal(mine, theirs)


def test_shortcut_a_passes_gradients_on():
    network = ResNet(18, width=1 / 16).eval()
    with torch.no_grad():  # nothing but the shortcuts is left behind layer 1
        for layer in (network.layer2, network.layer3, network.layer4):
            for block in layer:
                block.bn2.weight.zero_()
    network.pool(network.encode(torch.randn(1, 1, 32, 32, 64))).sum().backward()
    assert network.conv1.weight.grad.abs().max() > 0


def test_dilated_layers_see_a_coarser_lattice():
    """At every second voxel, layer 3 computes what it would undilated on every second voxel alone."""
    strided, dilated = ResNet(10, width=1 / 16).eval(), ResNet(10, dilated=True, width=1 / 16).eval()
    randomise(strided)
    dilated.load_state_dict(strided.state_dict())
    for module in strided.layer3.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = (1, 1, 1)
    x = torch.randn(1, 8, 6, 8, 10)
    with torch.no_grad():
        torch.testing.assert_close(
            dilated.layer3(x)[..., ::2, ::2, ::2], strided.layer3(x[..., ::2, ::2, ::2]), rtol=1e-4, atol=1e-4
        )
    convs = [m for m in dilated.layer4.modules() if isinstance(m, nn.Conv3d) and m.kernel_size == (3, 3, 3)]
    assert {(c.stride, c.dilation, c.padding) for c in convs} == {((1, 1, 1), (4, 4, 4), (4, 4, 4))}


@pytest.mark.parametrize(
    ("depth", "millions"),
    [(10, 14.36), (18, 32.99), (34, 63.30), (50, 46.16), (101, 85.20), (152, 117.36), (200, 126.56)],
)
def test_depths_have_their_sizes(depth, millions):
    with torch.device("meta"):
        network = ResNet(depth)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(millions * 1e6, rel=1e-3)


def test_a_dilated_network_has_stride_8():
    with torch.device("meta"):
        network = ResNet(50, dilated=True)
    assert network.channels == (64, 256, 2048)
    assert network.total_stride == (8, 8, 8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 20}, r"model\.depth is 20; it must be one of 10, 18"),
        ({"in_channels": 0}, r"model\.in_channels is 0"),
        ({"width": 0.0}, r"model\.width is 0\.0"),
    ],
)
def test_mistakes_name_their_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**{"depth": 10, **kwargs})
