"""Convolutional networks of the real libraries, as they are published: imported, and the same features come out.

Every image has two channels and is not cubic. Differences are zero unless a test says how large they may be.
"""

import pytest
import torch
import torchvision
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from monai.networks.nets import SegResNet as MonaiSegResNet
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from monai.networks.nets import resnet as monai_resnet
from torch import nn

from ssl3d.models.stunet import STUNet
from ssl3d.models.unet3d import UNet3D
from ssl3d.weights import Choices, import_weights


def equal(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs))


@torch.no_grad()
def test_nnunet_resenc_with_plans_in_its_checkpoint(save, resenc, volume):
    network = resenc()
    plans = {
        "configurations": {
            "3d_fullres": {"architecture": {"arch_kwargs": {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}}},
            "3d_mine": {"inherits_from": "3d_fullres", "patch_size": [8, 16, 24]},
        }
    }
    content = {"network_weights": network.state_dict(), "init_args": {"plans": plans, "configuration": "3d_mine"}}
    backbone, report = import_weights(save(content))
    assert type(backbone).__name__ == "ResEncUNet" and report.format == "nnU-Net ResidualEncoderUNet"
    x = volume(4, 8, 12)
    skips = network.encoder(x)
    assert equal(backbone.encode(x), skips)
    assert backbone.strides == ((1, 1, 1), (1, 2, 2), (2, 4, 4))
    assert torch.equal(network.decoder.seg_layers[-1](backbone.decode(skips)[0]), network(x))
    assert report.share() == 1 and all(t.part == "head" for t in report.tensors if t.outcome == "ignored")


@torch.no_grad()
def test_nnssl_resenc_knows_its_strides_from_the_adaptation_plan(save, resenc, volume):
    network = resenc()
    state = {k: v for k, v in network.state_dict().items() if k.startswith("encoder.")}  # OpenMind's carry no decoder
    arch_kwargs = {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "features_per_stage": [4, 6, 8], "n_stages": 3}
    plan = {"architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": arch_kwargs}}
    backbone, report = import_weights(save({"network_weights": state, "nnssl_adaptation_plan": plan}))
    x = volume(4, 8, 12)
    assert equal(backbone.encode(x), network.encoder(x))
    assert report.format.startswith("nnssl") and report.share("encoder") == 1 and report.share("decoder") == 0
    assert {t.reason for t in report.tensors if t.outcome == "fresh"} == {"the file holds no decoder"}


@torch.no_grad()
def test_nnunet_plain_network(save, randomised, volume):
    network = randomised(
        PlainConvUNet(
            input_channels=2,
            n_stages=3,
            features_per_stage=[4, 6, 8],
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=[1, [1, 2, 2], 2],
            n_conv_per_stage=[2, 1, 2],
            num_classes=3,
            n_conv_per_stage_decoder=[2, 1],
            conv_bias=True,
            norm_op=nn.BatchNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
    )
    backbone, report = import_weights(save({"network_weights": network.state_dict()}))
    x = volume(4, 8, 12)
    assert type(backbone).__name__ == "PlainConvUNet" and equal(backbone.encode(x), network.encoder(x))
    assert report.share() == 1


@torch.no_grad()
@pytest.mark.parametrize(("use_v2", "prefix"), [(True, ""), (False, "module."), (True, "module.backbone.")])
def test_swin_unetr(save, randomised, volume, use_v2, prefix):
    network = randomised(MonaiSwinUNETR(in_channels=2, out_channels=3, feature_size=12, window_size=4, use_v2=use_v2))
    content = {"state_dict": {prefix + k: v for k, v in network.state_dict().items()}, "epoch": 3}
    if prefix.endswith("backbone."):  # SuPreM: 'net', with text embeddings beside the network
        content = {"net": content["state_dict"] | {"module.organ_embedding": torch.ones(2, 3)}}
    backbone, report = import_weights(save(content))
    assert type(backbone).__name__ == "SwinUNETR" and report.share() == 1
    x = volume(32, 64, 96)
    hidden = network.swinViT(x, network.normalize)
    theirs = [network.encoder1(x), network.encoder2(hidden[0]), network.encoder3(hidden[1])]
    theirs += [network.encoder4(hidden[2]), hidden[3], network.encoder10(hidden[4])]
    ours = backbone.encode(x)
    assert equal(ours, theirs)


@torch.no_grad()
def test_swin_transformer_of_the_self_supervised_pretraining(save, randomised, volume):
    """MONAI's model_swinvit.pt: no `swinViT.` in front, fc1 for linear1, heads of its own, no convolutions."""
    network = randomised(MonaiSwinUNETR(in_channels=2, out_channels=3, feature_size=12, window_size=4))
    state = {f"module.{k}": v for k, v in network.swinViT.state_dict().items()}
    state = {k.replace("mlp.linear", "mlp.fc"): v for k, v in state.items()}
    state |= {"module.rotation_head.weight": torch.ones(4, 5), "module.norm.weight": torch.ones(192)}
    path = save({"state_dict": state})
    with pytest.raises(ValueError, match=r"only .* of the encoder's parameters would be filled .*--minimum"):
        import_weights(path)
    backbone, report = import_weights(path, Choices(minimum=0.1))
    x = volume(32, 64, 96)
    for ours, theirs in zip(backbone.swinViT(x), network.swinViT(x)):
        assert torch.equal(ours, theirs)
    assert all("only the transformer" in t.reason for t in report.tensors if t.outcome == "fresh")


@torch.no_grad()
@pytest.mark.parametrize("upsample", ["nontrainable", "deconv"])
def test_segresnet(save, randomised, volume, upsample):
    network = randomised(
        MonaiSegResNet(init_filters=8, in_channels=2, out_channels=3, blocks_down=(1, 2, 1), blocks_up=(1, 2),
                       upsample_mode=upsample)
    )  # fmt: skip
    backbone, report = import_weights(save(network.state_dict(), "model.pt"))
    x = volume(8, 12, 16)
    last, down = network.encode(x)
    assert equal(backbone.encode(x)[::-1], [last, *down[:-1][::-1]] if len(down) == 4 else down[::-1])
    assert report.share() == 1
    assert torch.equal(network.conv_final[2](backbone.decode(backbone.encode(x))[0]), network(x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "shortcut"), [("resnet10", "B"), ("resnet18", "B"), ("resnet18", "A"), ("resnet50", "B")]
)
def test_monai_resnets(save, randomised, volume, name, shortcut):
    """The bias in front of a shortcut's norm is taken into the norm: equal up to 1e-5 of the largest value."""
    network = randomised(
        getattr(monai_resnet, name)(
            n_input_channels=2, conv1_t_stride=2, shortcut_type=shortcut, widen_factor=0.125, num_classes=3
        )
    )
    backbone, report = import_weights(save({"state_dict": network.state_dict()}))
    assert backbone.depth == int(name[6:]) and report.share() == 1
    x = volume(32, 64, 96)
    ours = backbone.encode(x)
    h = (
        network.relu(network.bn1(network.conv1(x)))
        if hasattr(network, "relu")
        else network.act(network.bn1(network.conv1(x)))
    )
    theirs = [h]
    h = network.maxpool(h)
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        h = layer(h)
        theirs.append(h)
    for a, b in zip(ours, theirs):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("depth", [10, 18])
def test_medicalnet_resnets_with_module_in_front(save, randomised, volume, depth):
    """MedicalNet: `module.`, no head or conv_seg, layers 3 and 4 dilated; 18 has shortcut A, without weights."""
    network = randomised(
        getattr(monai_resnet, f"resnet{depth}")(
            n_input_channels=2, conv1_t_stride=2, shortcut_type="A" if depth == 18 else "B", widen_factor=0.125,
            feed_forward=False, bias_downsample=False,
        )
    )  # fmt: skip
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    state["module.conv_seg.0.weight"] = torch.ones(3, 64, 2, 2, 2)
    backbone, report = import_weights(save({"state_dict": state}))
    assert backbone.dilated and report.share() == 1 and "MedicalNet" in report.format
    x = volume(16, 24, 32)
    features = backbone.encode(x)
    assert [f.shape[2:] for f in features] == [(8, 12, 16), (4, 6, 8), (2, 3, 4)]
    h = network.maxpool(network.act(network.bn1(network.conv1(x))))
    assert torch.equal(features[1], network.layer1(h))
    for name, value in network.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name


@torch.no_grad()
@pytest.mark.parametrize("container", ["state_dict", "network_weights"])
def test_stunet_of_both_nnunets(save, randomised, volume, container):
    network = randomised(STUNet("tiny", 2))
    state = {**network.state_dict(), "seg_outputs.0.weight": torch.ones(3, 8, 1, 1, 1)}
    backbone, report = import_weights(save({container: state}))
    x = volume(32, 64, 32)
    assert equal(backbone.encode(x), network.encode(x)) and report.share() == 1
    assert f"nnU-Net {'v1' if container == 'state_dict' else 'v2'}" in report.format


@torch.no_grad()
@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s}, lambda s: {"net": s}])
def test_models_genesis_and_suprem_unet(save, randomised, volume, wrap):
    network = randomised(UNet3D(2, width=4))
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    state["module.out_tr.final_conv.weight"] = torch.ones(1, 8, 1, 1, 1)
    backbone, report = import_weights(save(wrap(state), "Genesis_Chest_CT.pt"))
    x = volume(8, 16, 24)
    assert equal(backbone.encode(x), network.encode(x)) and report.share() == 1
    assert any("running statistics" in note for note in report.notes)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_torchvision_resnets_are_inflated(save, randomised, name):
    """Central slices: a volume whose slices are all equal gives torchvision's features, up to rounding (1e-5)."""
    network = randomised(getattr(torchvision.models, name)())
    backbone, report = import_weights(save(network.state_dict()), Choices(inflate="centre"), in_channels=2)
    flat = torch.randn(1, 2, 64, 96, generator=torch.Generator().manual_seed(1))
    rgb = torch.cat([flat.mean(1, keepdim=True)] * 3, 1)  # what two channels mean to weights of three
    ours = backbone.encode(flat.unsqueeze(2).expand(-1, -1, 32, -1, -1))
    h = network.relu(network.bn1(network.conv1(rgb)))
    theirs = [h]
    h = network.maxpool(h)
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        h = layer(h)
        theirs.append(h)
    for a, b in zip(ours, theirs):
        for slice_ in a.unbind(2):
            assert (slice_ - b).abs().max() <= 1e-5 * b.abs().max()
    assert report.share() == 1 and backbone.in_channels == 2
    assert any("ImageNet" in note for note in report.notes)
