"""nnssl's reader, written anew from what it is known to access: it must find all it needs, and the same features."""

import json
import pydoc

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus as NNSSLPrimus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch.nn import functional as F

from ssl3d.export import nnunet_primus
from ssl3d.export.nnssl import export_nnssl
from ssl3d.export.source import Source
from ssl3d.models.plain_unet import PlainConvUNet
from ssl3d.models.primus import Primus, PrimusV2
from ssl3d.models.swin import SwinUNETR
from ssl3d.testing.backbone import randomise

PROVENANCE = {"spacing": [1.0, 1.0, 1.0], "normalisation": {"modalities": {"ct": [{"mean": 1.0}]}}}


def adapt(network, content, channels):
    """Fill encoder and stem of nnssl's network: other input channels by repetition, positions by interpolation."""
    plan, weights = content["nnssl_adaptation_plan"], content["network_weights"]
    before = plan["pretrain_num_input_channels"]
    weights = dict(weights)
    for key in plan["keys_to_in_proj"]:
        if channels != before:
            weights[f"{key}.weight"] = weights[f"{key}.weight"].repeat(1, channels, 1, 1, 1) / channels
    if plan["key_to_lpe"] is not None:
        table, wanted = weights[plan["key_to_lpe"]], network.get_parameter(plan["key_to_lpe"])
        if table.shape != wanted.shape:
            old = [n // 8 for n in plan["recommended_downstream_patchsize"]]
            new = [n // 8 for n in network.patch]
            volume = table[0].T.reshape(1, -1, *old)
            weights[plan["key_to_lpe"]] = F.interpolate(volume, size=new, mode="trilinear")[0].flatten(1).T[None]
    for key in (plan["key_to_encoder"], plan["key_to_stem"]):
        part = {name[len(key) + 1 :]: value for name, value in weights.items() if name.startswith(f"{key}.")}
        network.get_submodule(key).load_state_dict(part)


def read(folder):
    content = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    plan = content["nnssl_adaptation_plan"]
    assert json.loads((folder / "adaptation_plan.json").read_text()) == plan
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    assert configuration["patch_size"] == plan["recommended_downstream_patchsize"] == plan["pretrain_patch_size"]
    assert {"type", "name", "apa_citations"} == set(plan["citations"][0])
    assert plan["architecture_kwargs"] == plan["architecture_plans"]["arch_kwargs"]
    assert (
        json.loads((folder / "config.json").read_text())["architecture"]
        == plan["architecture_plans"]["arch_class_name"]
    )
    return content, plan, configuration


@pytest.mark.parametrize("channels", [1, 3])
def test_nnssls_resenc_takes_encoder_and_stem(backbone, tmp_path, channels):
    report = export_nnssl(Source(backbone, patch_size=(16, 24, 32), provenance=PROVENANCE), tmp_path, strict=True)
    content, plan, configuration = read(tmp_path)
    assert configuration["spacing"] == [1.0, 1.0, 1.0] and configuration["normalization_schemes"] == ["CTNormalization"]
    assert plan["key_to_encoder"] == "encoder.stages" and plan["key_to_stem"] == "encoder.stem"
    assert plan["keys_to_in_proj"] == ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"]
    assert plan["key_to_lpe"] is None
    assert plan["architecture_plans"]["arch_class_name"] == "ResidualEncoderUNet"
    kwargs = dict(plan["architecture_plans"]["arch_kwargs"])
    for key in plan["architecture_plans"]["arch_kwargs_requiring_import"]:
        kwargs[key] = pydoc.locate(kwargs[key]) if kwargs[key] is not None else None
    network = ResidualEncoderUNet(input_channels=channels, num_classes=4, deep_supervision=True, **kwargs).eval()
    adapt(network, content, channels)
    x = torch.randn(1, 1, 16, 24, 32)
    for a, b in zip(network.encoder(x.expand(-1, channels, -1, -1, -1)), backbone.encode(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert not report.names("adapted")


@pytest.mark.parametrize("patch", [(16, 24, 32), (24, 16, 40)])
def test_nnssls_primus_takes_tokens_in_its_order(tmp_path, monkeypatch, patch):
    monkeypatch.setattr(nnunet_primus, "SIZES_BUILT", ("tiny",))  # S has 20 million parameters
    backbone = randomise(Primus("tiny", in_channels=2, input_size=(16, 24, 32))).eval()
    report = export_nnssl(backbone, tmp_path, strict=True)
    content, plan, _ = read(tmp_path)
    assert (plan["key_to_encoder"], plan["key_to_stem"]) == ("eva", "down_projection")
    assert plan["keys_to_in_proj"] == ["down_projection.proj"] and plan["key_to_lpe"] == "eva.pos_embed"
    kwargs = plan["architecture_kwargs"] | {"input_shape": patch}
    network = NNSSLPrimus(input_channels=2, num_classes=5, **kwargs).eval()
    network.patch = patch
    adapt(network, content, 2)
    x = torch.randn(1, 2, *patch)
    tokens, _ = network.eva(network.down_projection(x).flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens.transpose(1, 2).unflatten(2, [n // 8 for n in patch]), backbone.encode(x)[0])
    assert "the plan says null" in report.text()


def test_a_plain_unet_has_its_stem_in_the_first_stage(tmp_path):
    report = export_nnssl(Source(PlainConvUNet("S"), trained_decoder=False), tmp_path)
    _, plan, _ = read(tmp_path)
    assert plan["key_to_stem"] == "encoder.stages.0"
    assert all(name.startswith("decoder.") for name in report.names("fresh"))
    with pytest.raises(ValueError, match="--strict: 'decoder"):
        export_nnssl(Source(PlainConvUNet("S"), trained_decoder=False), tmp_path, strict=True)


@pytest.mark.parametrize("make", [lambda: SwinUNETR("tiny"), lambda: PrimusV2("tiny", input_size=(16, 24, 32))])
def test_what_nnssl_has_not_is_refused(tmp_path, make):
    with pytest.raises(ValueError, match="nnssl has no network like"):
        export_nnssl(make(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
