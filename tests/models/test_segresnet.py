"""SegResNet: the conformance suite, and equality with MONAI's network."""

import pytest
import torch
from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet

from ssl3d.models.segresnet import SegResNet
from ssl3d.testing.backbone import BackboneTests, randomise


class TestSegResNet(BackboneTests):
    def make(self, in_channels=1):
        return SegResNet(8, in_channels, (1, 2, 1), (1, 1))


class TestSegResNetDeconv(BackboneTests):
    def make(self, in_channels=1):
        return SegResNet(8, in_channels, (1, 1), (2,), "deconv")


@pytest.mark.parametrize("upsample_mode", ["nontrainable", "deconv"])
def test_forward_equals_monais(upsample_mode):
    ours = SegResNet(8, 2, upsample_mode=upsample_mode)
    randomise(ours)
    real = MonaiSegResNet(in_channels=2, out_channels=3, upsample_mode=upsample_mode)
    missing, unexpected = real.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("conv_final.2.") for name in missing)
    x = torch.randn(2, 2, 8, 16, 24)
    with torch.no_grad():
        assert torch.equal(real.conv_final[2](ours.decode(ours.encode(x))[0]), real(x))


def test_default_is_the_papers():
    with torch.device("meta"):
        network = SegResNet()
    assert network.channels == (32, 64, 128, 256)
    assert network.total_stride == (8, 8, 8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"init_filters": 12}, r"model\.init_filters is 12"),
        ({"in_channels": 0}, r"model\.in_channels is 0"),
        ({"blocks_down": (1,)}, r"model\.blocks_down is \[1\]"),
        ({"blocks_up": (1, 1)}, r"model\.blocks_up is \[1, 1\]; it must hold 3 numbers"),
        ({"upsample_mode": "nearest"}, r"model\.upsample_mode is 'nearest'"),
    ],
)
def test_mistakes_name_their_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SegResNet(**{"init_filters": 8, **kwargs})
