"""ResEncUNet: the conformance suite, and equality with the real ResidualEncoderUNet."""

import pydoc

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from ssl3d.models.backbone import BackboneSpec, build_backbone
from ssl3d.models.init import aliases
from ssl3d.models.resenc import ResEncUNet
from ssl3d.testing.backbone import BackboneTests, randomise

ANISOTROPIC = {
    "features_per_stage": [4, 6, 8, 10],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
    "n_conv_per_stage_decoder": [1, 2, 1],
}


class TestResEncSmall(BackboneTests):
    def make(self, in_channels=1):
        return ResEncUNet("S", in_channels)


class TestResEncAnisotropic(BackboneTests):
    def make(self, in_channels=1):
        return ResEncUNet("S", in_channels, ANISOTROPIC)


def real_network(backbone: ResEncUNet, num_classes: int = 3) -> ResidualEncoderUNet:
    """nnU-Net's own network, built from the spec's architecture block as nnU-Net builds it, with our weights."""
    block = backbone.spec().architecture
    assert block is not None and block["network_class_name"].endswith(".ResidualEncoderUNet")
    kwargs = dict(block["arch_kwargs"])
    for key in block["_kw_requires_import"]:
        kwargs[key] = pydoc.locate(kwargs[key]) if kwargs[key] is not None else None
    real = pydoc.locate(block["network_class_name"])(
        input_channels=backbone.in_channels, num_classes=num_classes, deep_supervision=True, **kwargs
    )
    missing, unexpected = real.load_state_dict(backbone.state_dict(), strict=False)
    assert not unexpected
    assert all(".seg_layers." in name or name.startswith("decoder.encoder.") for name in missing)
    return real


@pytest.mark.parametrize("in_channels", [1, 2])
@pytest.mark.parametrize("arch_kwargs", [None, ANISOTROPIC])
def test_forward_equals_nnunets_network(arch_kwargs, in_channels):
    backbone = ResEncUNet("S", in_channels, arch_kwargs)
    randomise(backbone)
    real = real_network(backbone)
    d, h, w = backbone.total_stride
    x = torch.randn(2, in_channels, 2 * d, h, 3 * w)
    features = backbone.encode(x)
    for ours, theirs in zip(features, real.encoder(x), strict=True):
        assert torch.equal(ours, theirs)
    decoded = backbone.decode(features)
    outputs = real(x)  # deep supervision: one segmentation a scale, finest first
    assert len(outputs) == len(decoded)
    for i, (ours, theirs) in enumerate(zip(decoded, outputs)):
        assert torch.equal(real.decoder.seg_layers[len(decoded) - 1 - i](ours), theirs)


def test_names_are_nnunets_without_heads_and_repeated_encoder():
    with torch.device("meta"):
        backbone = ResEncUNet("L")
        real = real_network_names(backbone)
    ours = set(backbone.state_dict())
    assert ours == {n for n in real if ".seg_layers." not in n and not n.startswith("decoder.encoder.")}
    assert len(real) == 956  # weights_contract.md: 956 names, 264 tensors, ten of them segmentation heads
    groups = aliases(backbone)
    assert len(groups) == 254
    assert sum(len(g) for g in groups.values()) == len(ours)
    assert all(len(g) == 2 for name, g in groups.items() if "transpconvs" not in name)
    assert sum(n in backbone.encoder_parameter_names() for n in groups) == 224


def real_network_names(backbone):
    block = backbone.spec().architecture
    kwargs = {
        k: pydoc.locate(v) if k in block["_kw_requires_import"] and v else v for k, v in block["arch_kwargs"].items()
    }
    return ResidualEncoderUNet(input_channels=1, num_classes=1, deep_supervision=False, **kwargs).state_dict()


def test_large_is_nnunets_network_and_m_and_xl_are_its_aliases():
    with torch.device("meta"):
        m, large, xl = (ResEncUNet(size) for size in ("M", "L", "XL"))
    assert large.channels == (32, 64, 128, 256, 320, 320)
    assert large.strides == tuple((s, s, s) for s in (1, 2, 4, 8, 16, 32))
    assert large.arch_kwargs["n_blocks_per_stage"] == [1, 3, 4, 6, 6, 6]
    assert large.arch_kwargs["n_conv_per_stage_decoder"] == [1] * 5
    assert sum(p.numel() for p in large.parameters()) == pytest.approx(102.35e6, rel=1e-4)
    assert sum(p.numel() for p in large.encoder.parameters()) == pytest.approx(90.30e6, rel=1e-4)
    assert m.spec().architecture == large.spec().architecture == xl.spec().architecture
    sizes = [b.recommended["patch_size"] for b in (m, large, xl)]
    assert len(set(sizes)) == 3
    assert all(n % 32 == 0 for size in sizes for n in size)


def test_initialised_as_nnunet_does():
    torch.manual_seed(0)
    backbone = ResEncUNet("S")
    block = backbone.encoder.stages[1].blocks[0]
    assert not block.conv2.norm.weight.any()  # each block starts as its skip
    assert not block.conv1.conv.bias.any()
    weight = block.conv1.conv.weight
    fan_in = weight[0].numel()
    assert weight.std().item() == pytest.approx((2 / (1 + 1e-2**2) / fan_in) ** 0.5, rel=0.05)


def test_arch_kwargs_of_a_plans_file_can_be_given_whole():
    plans = ResEncUNet("S", arch_kwargs=ANISOTROPIC).spec().architecture["arch_kwargs"]
    backbone = ResEncUNet("L", 2, plans)
    assert backbone.spec().architecture["arch_kwargs"] == plans
    assert backbone.strides[-1] == (2, 8, 8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": "H"}, r"model\.size is 'H'; it must be one of S, M, L, XL"),
        ({"in_channels": 0}, r"model\.in_channels is 0"),
        ({"arch_kwargs": {"stride": [1]}}, r"'model\.arch_kwargs\.stride'; did you mean 'strides'"),
        ({"arch_kwargs": {"n_stages": 3}}, r"model\.arch_kwargs\.features_per_stage .* 3 whole numbers"),
        ({"arch_kwargs": {"n_stages": 1}}, r"model\.arch_kwargs\.n_stages is 1"),
        ({"arch_kwargs": {"strides": [1, 2]}}, r"model\.arch_kwargs\.strides .* 4 triples"),
        ({"arch_kwargs": {"strides": [1, 2, 2, [2, 2]]}}, r"model\.arch_kwargs\.strides"),
        ({"arch_kwargs": {"features_per_stage": 32}}, r"model\.arch_kwargs\.features_per_stage is 32"),
        ({"arch_kwargs": {"kernel_sizes": [3, 3, 2, 3]}}, r"kernel_sizes\[2\] is \[2, 2, 2\]; kernels must be odd"),
        ({"arch_kwargs": {"norm_op": "os.system"}}, r"model\.arch_kwargs\.norm_op is 'os\.system'"),
        ({"arch_kwargs": {"norm_op": "torch.nn.missing.Norm"}}, r"model\.arch_kwargs\.norm_op"),
        ({"arch_kwargs": {"conv_op": "torch.nn.Conv2d"}}, r"model\.arch_kwargs\.conv_op .* only"),
    ],
)
def test_mistakes_name_their_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ResEncUNet(**{"size": "S", **kwargs})


def test_a_single_voxel_at_the_bottleneck_is_refused():
    backbone = ResEncUNet("S")
    with pytest.raises(ValueError, match="single voxel"):
        backbone.check_size((8, 8, 8))
    backbone.check_size((8, 8, 16))


@pytest.mark.parametrize(("size", "words"), [((8, 4, 16), "axis H is 4, .* use 8$"), ((8, 8, 20), "use 16 or 24$")])
def test_a_size_that_the_stride_does_not_divide_is_refused_with_sizes_that_it_does(size, words):
    with pytest.raises(ValueError, match=words):
        ResEncUNet("S").check_size(size)


def test_other_norms_can_be_chosen():
    arch_kwargs = {"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d", "norm_op_kwargs": {"eps": 1e-5}}
    backbone = ResEncUNet("S", arch_kwargs=arch_kwargs)
    assert isinstance(backbone.encoder.stem.convs[0].norm, nn.BatchNorm3d)


@pytest.mark.parametrize(
    ("target", "message"),
    [("nowhere.at.All", "cannot be imported"), ("torch.nn.Linear", "not a class derived"), ("Plain", "not a class")],
)
def test_build_backbone_refuses_what_is_no_backbone(target, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(BackboneSpec(target))
