"""PCTNet: the conformance suite, strides of each resolution mode, the published names."""

import pytest
import torch

from ssl3d.models.pctnet import PCTNet
from ssl3d.testing.backbone import BackboneTests


class TestPCTNet(BackboneTests):
    def make(self, in_channels=1):
        return PCTNet("tiny", in_channels, resolution_mode=1)


@pytest.mark.parametrize(
    ("mode", "strides"),
    [
        (0, ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16))),
        (1, ((1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8), (8, 16, 16))),
        (2, ((1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16))),
    ],
)
def test_resolution_modes_have_their_strides(mode, strides):
    network = PCTNet("tiny", resolution_mode=mode).eval()
    assert network.strides == strides
    d, h, w = network.total_stride
    features = network.encode(torch.randn(1, 1, d, 2 * h, w))
    for f, stride in zip(features + network.decode(features), strides + strides[:-1], strict=True):
        assert f.shape[2:] == (d // stride[0], 2 * h // stride[1], w // stride[2])


def test_names_and_shapes_are_the_published_ones():
    """As read in net/pct_net.py of MIS-FM, a sample of each kind of layer."""
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in PCTNet().state_dict().items()}
    expected = {
        "embeddings.0.proj.weight": (24, 1, 3, 3, 3),
        "embeddings.0.conv0.conv_conv.6.weight": (24, 24, 3, 3, 3),
        "embeddings.0.down2.conv.2.weight": (128, 48, 3, 3, 3),
        "pyramid_ct.down4.conv.2.weight": (512, 256, 3, 3, 3),
        "pyramid_ct.up3.up.2.weight": (256, 128, 2, 2, 2),
        "pyramid_ct.up4.conv.2.weight": (256, 512, 3, 3, 3),
        "pyramid_ct.convtrans_e2.trans.blocks.1.attn.relative_position_bias_table": (11**3, 4),
        "pyramid_ct.convtrans_e2.trans.blocks.1.attn.relative_position_index": (216, 216),
        "pyramid_ct.convtrans_e4.trans.blocks.0.attn.relative_position_bias_table": (7**3, 16),
        "pyramid_ct.convtrans_d3.trans.blocks.0.attn.qkv.weight": (768, 256),
        "pyramid_ct.convtrans_d3.conv.conv_conv.1.weight": (1,),
        "pred_heads.0.up1.up.2.weight": (48, 24, 2, 2, 2),
        "pred_heads.0.conv1.conv_conv.2.weight": (48, 48, 3, 3, 3),
    }
    assert {k: shapes.get(k) for k in expected} == expected
    in_plane = PCTNet("tiny", resolution_mode=2).state_dict()
    assert in_plane["embeddings.2.proj.weight"].shape[2:] == (1, 3, 3)
    assert in_plane["pred_heads.2.up2.up.2.weight"].shape[2:] == (1, 2, 2)


def test_dropout_acts_in_training_alone():
    x = torch.randn(2, 1, 16, 32, 16)
    network = PCTNet("tiny")
    assert not torch.equal(network.encode(x)[-1], network.encode(x)[-1])
    network.eval()
    assert torch.equal(network.encode(x)[-1], network.encode(x)[-1])
    still = PCTNet("tiny", dropout=0.0, drop_path=0.0)
    assert torch.equal(still.encode(x)[-1], still.encode(x)[-1])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": "L"}, r"model\.size is 'L'; it must be one of tiny, B"),
        ({"in_channels": 0}, r"model\.in_channels is 0"),
        ({"resolution_mode": 3}, r"model\.resolution_mode is 3; it must be one of 0, 1, 2"),
        ({"dropout": 1.0}, r"model\.dropout is 1\.0"),
        ({"drop_path": -0.1}, r"model\.drop_path is -0\.1"),
    ],
)
def test_mistakes_name_their_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PCTNet(**{"size": "tiny", **kwargs})
