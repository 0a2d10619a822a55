"""PlainConvUNet: the conformance suite, and equality with nnU-Net's own network."""

import pydoc
from types import SimpleNamespace

import pytest
import torch

from ssl3d.export.nnunet import build_network, fill
from ssl3d.models.plain_unet import PlainConvUNet
from ssl3d.testing.backbone import BackboneTests, randomise

ANISOTROPIC = {
    "features_per_stage": [4, 6, 8, 10],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
    "n_conv_per_stage": [1, 2, 1, 1],
    "n_conv_per_stage_decoder": [1, 2, 1],
}


class TestPlainConvUNet(BackboneTests):
    def make(self, in_channels=1):
        return PlainConvUNet("S", in_channels, {"features_per_stage": [4, 6, 8, 10]})


class TestPlainConvUNetAnisotropic(BackboneTests):
    def make(self, in_channels=1):
        return PlainConvUNet("S", in_channels, ANISOTROPIC)


def real_network(backbone, num_classes=3):
    """nnU-Net's own network, built from the spec's architecture block as nnU-Net builds it."""
    block = backbone.spec().architecture
    kwargs = dict(block["arch_kwargs"])
    for key in block["_kw_requires_import"]:
        kwargs[key] = pydoc.locate(kwargs[key]) if kwargs[key] is not None else None
    network_class = pydoc.locate(block["network_class_name"])
    return network_class(backbone.in_channels, num_classes=num_classes, deep_supervision=True, **kwargs)


@pytest.mark.parametrize("in_channels", [1, 2])
def test_forward_equals_nnunets_network(in_channels):
    backbone = PlainConvUNet("S", in_channels, ANISOTROPIC)
    randomise(backbone)
    real = real_network(backbone)
    missing, unexpected = real.load_state_dict(backbone.state_dict(), strict=False)
    assert not unexpected
    assert all(".seg_layers." in name or name.startswith("decoder.encoder.") for name in missing)
    x = torch.randn(2, in_channels, 4, 8, 24)
    decoded = backbone.decode(backbone.encode(x))
    outputs = real(x)
    assert len(outputs) == len(decoded)
    for i, (ours, theirs) in enumerate(zip(decoded, outputs)):
        assert torch.equal(real.decoder.seg_layers[len(decoded) - 1 - i](ours), theirs)


def test_large_is_nnunets_default():
    with torch.device("meta"):
        large = PlainConvUNet()
        real = real_network(large, 1)
    assert large.arch_kwargs["n_conv_per_stage"] == [2] * 6
    assert large.arch_kwargs["n_conv_per_stage_decoder"] == [2] * 5
    assert sum(p.numel() for p in large.parameters()) == pytest.approx(31.19e6, rel=1e-3)
    assert set(large.state_dict()) == {
        n for n in real.state_dict() if ".seg_layers." not in n and not n.startswith("decoder.encoder.")
    }


def test_the_stem_is_spread_over_the_channels_of_an_export():
    backbone = PlainConvUNet("S", 1, ANISOTROPIC)
    network = build_network(backbone.spec().architecture, 2)
    outcomes = fill(network, SimpleNamespace(backbone=backbone, trained_decoder=True))
    assert [o.name for o in outcomes if o.outcome == "adapted"] == [backbone.stem]
    x = torch.randn(1, 1, 4, 8, 24)
    ours = backbone.encode(x)
    for mine, theirs in zip(ours, network.encoder(x.repeat(1, 2, 1, 1, 1)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": "M"}, r"model\.size is 'M'; it must be one of S, L"),
        ({"in_channels": 0}, r"model\.in_channels is 0"),
        ({"arch_kwargs": {"n_blocks_per_stage": [1]}}, r"'model\.arch_kwargs\.n_blocks_per_stage'"),
        ({"arch_kwargs": {"n_conv_per_stage": [1]}}, r"model\.arch_kwargs\.n_conv_per_stage .* 4 whole numbers"),
    ],
)
def test_mistakes_name_their_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PlainConvUNet(**{"size": "S", **kwargs})
