"""ssl3d -> another program's file -> ssl3d: the same network, bit by bit."""

import pytest
import torch

from ssl3d.export import nnunet_primus
from ssl3d.export.hub import export_hub
from ssl3d.export.monai import export_monai
from ssl3d.export.nnssl import export_nnssl
from ssl3d.export.nnunet import export_nnunet
from ssl3d.export.safetensors import export_safetensors
from ssl3d.models.plain_unet import PlainConvUNet
from ssl3d.models.primus import Primus
from ssl3d.models.segresnet import SegResNet
from ssl3d.models.swin import SwinUNETR
from ssl3d.testing.backbone import randomise
from ssl3d.weights import import_weights

SEGRESNET = {"init_filters": 8, "in_channels": 2, "blocks_down": (1, 1, 2), "blocks_up": (1, 1)}
FAMILIES = {
    "resenc": None,
    "plain": lambda: PlainConvUNet("S", 2),
    "segresnet": lambda: SegResNet(**SEGRESNET),
    "swin": lambda: SwinUNETR("tiny", in_channels=2),
    "primus": lambda: Primus("tiny", in_channels=2, input_size=(16, 24, 32)),
}


@pytest.mark.parametrize(
    ("family", "write", "file"),
    [
        ("resenc", export_nnunet, "checkpoint.pth"),
        ("plain", export_nnunet, "checkpoint.pth"),
        ("resenc", export_nnssl, "checkpoint_final.pth"),
        ("primus", export_nnssl, "checkpoint_final.pth"),
        ("segresnet", export_monai, "models/model.pt"),
        ("swin", export_monai, "models/model.pt"),
        ("resenc", export_safetensors, "model.safetensors"),
        ("primus", export_safetensors, "model.safetensors"),
        ("resenc", export_hub, "model.safetensors"),
    ],
)
def test_what_comes_back_is_what_went(backbone, tmp_path, monkeypatch, family, write, file):
    monkeypatch.setattr(nnunet_primus, "SIZES_BUILT", ("tiny",))
    network = randomise(FAMILIES[family]()).eval() if FAMILIES[family] else backbone
    write(network, tmp_path, strict=True)
    again, report = import_weights(tmp_path / file)
    assert type(again) is type(network)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in again.state_dict().items())
    assert report.share() == 1 and not report.names("adapted") and not report.names("fresh")
    size = [2 * stride for stride in network.total_stride]
    size[2] *= 2  # not a cube
    x = torch.randn(1, network.in_channels, *size)
    for a, b in zip(again.encode(x), network.encode(x), strict=True):
        assert torch.equal(a, b)
