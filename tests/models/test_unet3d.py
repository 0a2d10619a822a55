"""UNet3D: the conformance suite, the published names and size."""

import pytest
import torch

from ssl3d.models.unet3d import UNet3D
from ssl3d.testing.backbone import BackboneTests


class TestUNet3D(BackboneTests):
    def make(self, in_channels=1):
        return UNet3D(in_channels, width=3)


def test_names_and_shapes_are_the_published_ones():
    """As read in pytorch/unet3d.py of Models Genesis: (in, out) of each convolution."""
    convolutions = {
        "down_tr64": ((1, 32), (32, 64)),
        "down_tr128": ((64, 64), (64, 128)),
        "down_tr256": ((128, 128), (128, 256)),
        "down_tr512": ((256, 256), (256, 512)),
        "up_tr256": ((512 + 256, 256), (256, 256)),
        "up_tr128": ((256 + 128, 128), (128, 128)),
        "up_tr64": ((128 + 64, 64), (64, 64)),
    }
    expected = {}
    for name, pair in convolutions.items():
        for i, (a, b) in enumerate(pair):
            expected[f"{name}.ops.{i}.conv1.weight"] = (b, a, 3, 3, 3)
            expected[f"{name}.ops.{i}.conv1.bias"] = (b,)
            for parameter in ("weight", "bias", "running_mean", "running_var"):
                expected[f"{name}.ops.{i}.bn1.{parameter}"] = (b,)
            expected[f"{name}.ops.{i}.bn1.num_batches_tracked"] = ()
    for name, c in (("up_tr256", 512), ("up_tr128", 256), ("up_tr64", 128)):
        expected[f"{name}.up_conv.weight"], expected[f"{name}.up_conv.bias"] = (c, c, 2, 2, 2), (c,)
    with torch.device("meta"):
        network = UNet3D()
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == expected
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(19.07e6, rel=2e-3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"in_channels": 0}, r"model\.in_channels is 0"), ({"width": 0}, r"model\.width is 0")],
)
def test_mistakes_name_their_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        UNet3D(**kwargs)
