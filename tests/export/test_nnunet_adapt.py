"""The weights of one nnU-Net in another: what is adapted, what is refused, and that the features stay the same."""

import copy
import json

import pytest
import torch
from torch.nn import functional as F

from ssl3d.export.nnunet import build_network, export_nnunet
from ssl3d.export.nnunet_adapt import first_difference, fit, same
from ssl3d.export.nnunet_plans import CONFIGURATION
from ssl3d.export.source import Source
from ssl3d.models.plain_unet import PlainConvUNet

IMAGE = (1, 1, 16, 32, 48)


@pytest.fixture
def planned(backbone, plans_file):
    """A function that plans a network like the backbone's but for the given keys, and returns the plans file."""

    def write(channels: int = 1, **kwargs):
        block = copy.deepcopy(backbone.spec().architecture)
        block["arch_kwargs"] |= kwargs
        path = plans_file(channels)
        content = json.loads(path.read_text())
        content["configurations"]["3d_fullres"]["architecture"] = block
        path.write_text(json.dumps(content))
        return path

    return write


def export_into(backbone, plans, out, **options):
    """Export into the planned network; returns the report and nnU-Net's network as it is loaded."""
    report = export_nnunet(backbone, out, plans=plans, architecture="planned", **options)
    block = json.loads((out / "architecture.json").read_text())
    weights = torch.load(out / "checkpoint.pth", weights_only=True)["network_weights"]
    network = build_network(block, weights["encoder.stem.convs.0.conv.weight"].shape[1])
    network.load_state_dict(weights)
    return report, network


def stages(n, **kwargs):
    """The keys of a network of n stages whose first four are the backbone's."""
    features, blocks, strides = (
        [4, 6, 8, 10, 12],
        [1, 2, 1, 1, 1],
        [[1, 1, 1], [2, 2, 2], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
    )
    return {
        "n_stages": n,
        "features_per_stage": features[:n],
        "n_blocks_per_stage": blocks[:n],
        "strides": strides[:n],
        "kernel_sizes": [[3, 3, 3]] * n,
        "n_conv_per_stage_decoder": [1] * (n - 1),
        **kwargs,
    }


@pytest.mark.parametrize("n", [3, 5])
def test_other_stages_at_the_deep_end_keep_the_features_of_the_others(backbone, planned, tmp_path, n):
    report, network = export_into(backbone, planned(**stages(n)), tmp_path / "out", minimum=0)
    x = torch.randn(IMAGE)
    for a, b in zip(network.encoder(x), backbone.encode(x), strict=False):
        assert torch.equal(a, b)
    ours, theirs = backbone.state_dict(), network.state_dict()
    for scale in range(min(n, 4) - 1):  # nnU-Net counts decoder stages from the deep end
        for kind in ("transpconvs", "stages"):
            prefix, own = f"decoder.{kind}.{n - 2 - scale}.", f"decoder.{kind}.{2 - scale}."
            names = [name for name in theirs if name.startswith(prefix)]
            assert names
            assert all(torch.equal(theirs[name], ours[own + name[len(prefix) :]]) for name in names)
    fresh = [name for name in report.names("fresh") if ".seg_layers." not in name]
    if n == 3:
        assert not fresh and "its deepest 1 are left out" in report.text()
    else:
        assert {name.split(".")[2] for name in fresh if name.startswith("encoder")} == {"4"}
        assert {name.split(".")[2] for name in fresh if name.startswith("decoder")} == {"0"}
        assert "the deepest 1 are fresh" in report.text()


def test_the_planned_patch_and_network_are_what_is_configured(backbone, planned, tmp_path):
    plans = planned(**stages(3))
    export_into(backbone, plans, tmp_path / "out")
    configured = json.loads(plans.read_text())["configurations"]
    assert configured[CONFIGURATION]["architecture"] == configured["3d_fullres"]["architecture"]
    assert configured[CONFIGURATION]["patch_size"] == [37, 56, 40]


def test_an_equal_network_is_copied_bit_by_bit(backbone, planned, tmp_path):
    report, network = export_into(backbone, planned(), tmp_path / "out", strict=True)
    assert not report.names("adapted")
    assert all(torch.equal(network.state_dict()[name], value) for name, value in backbone.state_dict().items())


def test_flat_kernels_become_deep_ones_with_the_same_function(backbone, planned, tmp_path):
    flat = type(backbone)("S", arch_kwargs={**stages(4), "kernel_sizes": [[1, 3, 3], [1, 3, 3], 3, 3]}).eval()
    report, network = export_into(flat, planned(), tmp_path / "out")
    x = torch.randn(IMAGE)
    for a, b in zip(network.encoder(x), flat.encode(x)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert any("1 became 3 along D: zeros around it" in t.reason for t in report.tensors)


def test_deep_kernels_become_flat_ones_by_the_mean(backbone, planned, tmp_path):
    flat = [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]]
    report, network = export_into(backbone, planned(kernel_sizes=flat), tmp_path / "out")
    ours, theirs = backbone.state_dict(), network.state_dict()
    changed = {t.name: t for t in report.tensors if t.outcome == "adapted"}
    assert {n.partition(".convs")[0] for n in changed if n.startswith("encoder.stem")} == {"encoder.stem"}
    for name, tensor in changed.items():
        assert "3 became 1 along D: the mean" in tensor.reason
        assert torch.equal(theirs[name], ours[name].mean(2, keepdim=True))
    image = torch.randn(1, 4, 1, 8, 12).expand(1, 4, 5, 8, 12)  # does not change along D
    deep = torch.randn(6, 4, 3, 3, 3)
    flattened, _ = fit(deep, (6, 4, 1, 3, 3))
    inner = F.conv3d(image, deep, padding=1)[:, :, 1:-1]
    torch.testing.assert_close(
        inner, 3 * F.conv3d(image, flattened, padding=(0, 1, 1))[:, :, 1:-1], rtol=1e-4, atol=1e-4
    )


def test_strides_repeat_and_average_transposed_convolutions(backbone, planned, tmp_path):
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    report, network = export_into(backbone, planned(strides=strides), tmp_path / "out")
    ours, theirs = backbone.state_dict(), network.state_dict()
    name = "decoder.transpconvs.2.weight"
    assert torch.equal(theirs[name], ours[name].mean(2, keepdim=True))
    name = "decoder.transpconvs.1.weight"
    assert torch.equal(theirs[name], ours[name].repeat_interleave(2, 2))
    assert "stage 1 pools by [1, 2, 2], in the run by [2, 2, 2]" in report.text()
    assert not [t for t in report.tensors if t.outcome == "adapted" and t.part == "encoder"]


def test_more_blocks_are_fresh_and_channels_are_spread(backbone, planned, tmp_path):
    report, network = export_into(backbone, planned(2, n_blocks_per_stage=[1, 2, 2, 1]), tmp_path / "out")
    assert all(n.startswith("encoder.stages.2.blocks.1.") or ".seg_layers." in n for n in report.names("fresh"))
    x = torch.randn(IMAGE)
    for a, b in zip(network.encoder(x.expand(-1, 2, -1, -1, -1))[:2], backbone.encode(x)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"features_per_stage": [4, 6, 9, 10]}, "stage 2 has 9 features there and 8 in the run"),
        ({"n_blocks_per_stage": [1, 1, 1, 1]}, "stage 1 has 1 blocks there and 2 in the run"),
        ({"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}, r"normalisation \(norm_op\) are .*BatchNorm3d there"),
        ({"strides": [[1, 1, 1], [3, 2, 2], [1, 2, 2], [2, 2, 2]]}, "stage 1 has a stride of 3 along D there and 2"),
        ({"strides": [[1, 1, 1], [2, 2, 2], [1, 1, 1], [2, 2, 2]]}, "stage 2 has strides"),
        ({"squeeze_excitation": True}, "it has squeeze_excitation = True there"),
        ({"n_conv_per_stage_decoder": [1, 2, 1]}, "the decoder has 2 convolutions at scale 1 there and 1 in the run"),
    ],
)
def test_what_cannot_be_adapted_is_refused_in_words_with_the_remedy(backbone, planned, tmp_path, kwargs, words):
    plans = planned(**kwargs)
    before = plans.read_text()
    with pytest.raises(ValueError, match=f"cannot be filled from this run: {words}") as error:
        export_into(backbone, plans, tmp_path / "out")
    assert f"leave --architecture out: the configuration {CONFIGURATION}" in str(error.value)
    assert plans.read_text() == before and not (tmp_path / "out").exists()
    export_nnunet(backbone, tmp_path / "out", plans=plans)  # the remedy


def test_another_kind_of_network_is_refused(backbone):
    plain = PlainConvUNet("S").spec().architecture
    assert first_difference(backbone.spec().architecture, plain) == (
        "it is a PlainConvUNet there and a ResidualEncoderUNet in the run"
    )


def test_shorthand_and_lists_are_the_same_network(backbone):
    block = backbone.spec().architecture
    short = copy.deepcopy(block)
    short["arch_kwargs"]["kernel_sizes"] = 3
    short["arch_kwargs"]["n_conv_per_stage_decoder"] = 1
    assert same(block, short) and first_difference(block, short) is None


def test_below_the_threshold_and_strict_are_refused(backbone, planned, tmp_path):
    deeper = planned(**stages(5))
    with pytest.raises(ValueError, match=r"only .* % of the encoder's parameters would be filled .*--minimum"):
        export_into(backbone, deeper, tmp_path / "out", minimum=0.99)
    with pytest.raises(ValueError, match="--strict: stage 1 pools by"):
        strides = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]
        export_into(backbone, planned(strides=strides), tmp_path / "out", strict=True)
    with pytest.raises(ValueError, match="--architecture planned needs --plans"):
        export_nnunet(Source(backbone), tmp_path / "out", architecture="planned")
    assert not (tmp_path / "out").exists()
