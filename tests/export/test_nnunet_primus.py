"""Primus for nnU-Net's Primus trainers: every name, the data set's patch and classes, the same features."""

import json

import pytest
import torch

from ssl3d.export import nnunet_primus
from ssl3d.export.nnunet import export_nnunet
from ssl3d.export.nnunet_plans import read_classes
from ssl3d.export.source import Source
from ssl3d.models.init import aliases
from ssl3d.models.primus import Primus, PrimusV2
from ssl3d.testing.backbone import randomise


@pytest.fixture
def dataset_json(tmp_path):
    path = tmp_path / "dataset.json"
    labels = {"background": 0, "liver": 1, "tumour": 2, "ignore": 3}
    path.write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": labels}))
    return path


@pytest.mark.parametrize("family", [Primus, PrimusV2])
@pytest.mark.parametrize("patch", [[16, 24, 32], [24, 16, 40]])
def test_nnunets_network_gives_the_same_tokens(family, patch):
    backbone = randomise(family("tiny", in_channels=2, input_size=(16, 24, 32))).eval()
    network = nnunet_primus.build(backbone, 2, 3, nnunet_primus.network_kwargs(backbone, patch))
    outcomes = nnunet_primus.fill(network, Source(backbone), patch)
    assert [t.name for t in outcomes] == list(aliases(network))
    x = torch.randn(1, 2, *patch)
    tokens, _ = network.eva(network.down_projection(x).flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens.transpose(1, 2).unflatten(2, [n // 8 for n in patch]), backbone.encode(x)[0])
    adapted = [t.name for t in outcomes if t.outcome == "adapted"]
    assert adapted == ([] if patch == [16, 24, 32] else ["eva.pos_embed"])
    assert all(t.outcome == "fresh" for t in outcomes if t.part == "decoder")  # 3 classes: other widths than the run's


def test_a_decoder_of_the_same_widths_is_copied():
    backbone = randomise(Primus("tiny", input_size=(16, 24, 32))).eval()
    network = nnunet_primus.build(backbone, 1, 16, nnunet_primus.network_kwargs(backbone, [16, 24, 32]))
    outcomes = nnunet_primus.fill(network, Source(backbone), [16, 24, 32])
    assert [t.name for t in outcomes if t.part == "head"] == [
        "mask_token", "up_projection.decode.2.weight", "up_projection.decode.2.bias",
    ]  # fmt: skip
    features = backbone.encode(torch.randn(1, 1, 16, 24, 32))
    decoded = torch.nn.Sequential(*network.up_projection.decode[:-1])(features[0])
    torch.testing.assert_close(decoded, backbone.decode(features)[1])  # all but the layer that gives classes


def test_one_channel_is_spread_over_two():
    backbone = randomise(Primus("tiny", input_size=(16, 24, 32))).eval()
    network = nnunet_primus.build(backbone, 2, 3, nnunet_primus.network_kwargs(backbone, [16, 24, 32]))
    nnunet_primus.fill(network, Source(backbone), [16, 24, 32])
    x = torch.randn(1, 1, 16, 24, 32)
    two = network.down_projection(x.expand(-1, 2, -1, -1, -1))
    torch.testing.assert_close(two, backbone.down_projection(x), rtol=1e-3, atol=1e-4)


def test_an_export_has_every_name_for_the_data_sets_classes_and_patch(dataset_json, plans_file, tmp_path, monkeypatch):
    monkeypatch.setattr(nnunet_primus, "SIZES_BUILT", ("tiny",))  # S has 20 million parameters
    backbone = Primus("tiny", input_size=(16, 24, 32))
    plans = plans_file(2)
    out = tmp_path / "out"
    report = export_nnunet(
        Source(backbone, trained_decoder=False), out, plans=plans, dataset_json=dataset_json, minimum=0.9
    )
    configured = json.loads(plans.read_text())["configurations"]["3d_fullres_ssl3d"]
    assert configured == {"inherits_from": "3d_fullres", "patch_size": [40, 56, 40], "batch_size": 9}
    block = json.loads((out / "architecture.json").read_text())
    network = nnunet_primus.build(backbone, 2, 3, block["arch_kwargs"])
    weights = torch.load(out / "checkpoint.pth", weights_only=True)["network_weights"]
    network.load_state_dict(weights)  # nnU-Net wants every name and shape, the last layer's too
    assert weights["up_projection.decode.2.weight"].shape[1] == 3
    assert weights["eva.pos_embed"].shape == (1, 5 * 7 * 5, 96)
    assert set(report.names("adapted")) == {"eva.pos_embed", "down_projection.proj.weight"}
    text = (out / "HOW_TO.md").read_text()
    assert "-p nnUNetResEncUNetLPlans -tr nnUNet_Primus_tiny_Trainer -pretrained_weights" in text and "{" not in text
    assert [p.name for p in (out / "trainers").iterdir()] == ["ssl3d_trial.py"]  # nnU-Net's Primus trainers warm up
    assert "the decoder is fresh" in report.text()


def test_what_nnunet_has_no_trainer_for_is_refused(dataset_json, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="sizes S, B, M, L with 8-voxel patches; this run has size tiny"):
        export_nnunet(Primus("tiny", input_size=(16, 24, 32)), tmp_path / "out", dataset_json=dataset_json)
    monkeypatch.setattr(nnunet_primus, "SIZES_BUILT", ("tiny",))
    with pytest.raises(ValueError, match="needs --dataset-json for a Primus"):
        export_nnunet(Primus("tiny", input_size=(16, 24, 32)), tmp_path / "out")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ({"background": 0, "a": 1}, 2),
        ({"background": 0, "a": 1, "b": 2, "ignore": 3}, 3),
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3]}, 2),
        ({"background": 0, "a": [1], "b": [2]}, 3),
    ],
)
def test_classes_are_counted_as_nnunet_does(tmp_path, labels, classes):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": labels}))
    assert read_classes(path) == classes
