"""The nnU-Net export against what weights_contract section 1 demands, without nnU-Net itself."""

import json
import pydoc
import stat
from importlib import metadata
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

from ssl3d.export.nnunet import build_network, export_nnunet
from ssl3d.export.nnunet_plans import CONFIGURATION, fit_patch
from ssl3d.export.source import Source
from ssl3d.models.init import aliases
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.vit import ViT


def load(path):
    return torch.load(path, weights_only=True)["network_weights"]


def nnunet_loads(network, weights):
    """What nnU-Net's load_pretrained_weights does: every name but the heads must be there, equal in shape."""
    target = network.state_dict()
    for name, value in target.items():
        if ".seg_layers." not in name:
            assert name in weights and weights[name].shape == value.shape, name
    target.update({k: v for k, v in weights.items() if k in target and ".seg_layers." not in k})
    network.load_state_dict(target)


def nnunets_network(folder, in_channels, num_classes=4):
    """The network nnU-Net builds from architecture.json."""
    block = json.loads((folder / "architecture.json").read_text())
    assert set(block) == {"network_class_name", "arch_kwargs", "_kw_requires_import"}
    kwargs = block["arch_kwargs"]
    for key in block["_kw_requires_import"]:
        kwargs[key] = pydoc.locate(kwargs[key]) if kwargs[key] is not None else None
    return ResidualEncoderUNet(input_channels=in_channels, num_classes=num_classes, deep_supervision=True, **kwargs)


def test_every_tensor_arrives_in_nnunets_network(backbone, tmp_path):
    export_nnunet(backbone, tmp_path)
    network = nnunets_network(tmp_path, 1)
    nnunet_loads(network, load(tmp_path / "checkpoint.pth"))
    ours = backbone.state_dict()
    arrived = network.state_dict()
    assert all(torch.equal(arrived[name], value) for name, value in ours.items())
    x = torch.randn(1, 1, 8, 24, 16)
    for a, b in zip(network.encoder(x), backbone.encode(x), strict=True):
        assert torch.equal(a, b)


def test_aliases_are_complete_equal_and_stored_once(backbone, tmp_path):
    export_nnunet(backbone, tmp_path)
    weights = load(tmp_path / "checkpoint.pth")
    assert list(weights) == list(build_network(backbone.spec().architecture, 1).state_dict())
    groups = aliases(nnunets_network(tmp_path, 1))
    assert {len(g) for n, g in groups.items() if n.startswith("encoder.")} == {4}
    for names in groups.values():
        if ".seg_layers." in names[0]:
            continue
        assert len({weights[n].data_ptr() for n in names}) == 1
        assert all(torch.equal(weights[n], weights[names[0]]) for n in names)
    values = sum(p.numel() for p in backbone.parameters())
    assert (tmp_path / "checkpoint.pth").stat().st_size < 4 * values * 1.2 + 600_000
    assert {v.dtype for v in weights.values()} == {torch.float32}


def test_export_is_reproducible_and_leaves_the_global_generator(backbone, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    export_nnunet(backbone, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    export_nnunet(backbone, tmp_path / "b")
    a, b = (load(tmp_path / x / "checkpoint.pth") for x in "ab")
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert a["decoder.seg_layers.0.weight"].abs().max() > 0


def test_double_precision_weights_are_saved_as_float32(backbone, tmp_path):
    export_nnunet(backbone.double(), tmp_path)
    assert {v.dtype for v in load(tmp_path / "checkpoint.pth").values()} == {torch.float32}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(backbone, tmp_path, bad):
    with torch.no_grad():
        backbone.decoder.transpconvs[1].bias[2] = bad
    with pytest.raises(ValueError, match=r"the run: tensor 'decoder\.transpconvs\.1\.bias' holds NaN or Inf"):
        export_nnunet(backbone, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stem_for_more_channels(backbone, tmp_path):
    report = export_nnunet(backbone, tmp_path, in_channels=3)
    weights = load(tmp_path / "checkpoint.pth")
    network = nnunets_network(tmp_path, 3)
    nnunet_loads(network, weights)
    stem = backbone.state_dict()[ResEncUNet.stem]
    for name in next(g for n, g in aliases(network).items() if n == ResEncUNet.stem):
        assert torch.equal(weights[name], stem.repeat(1, 3, 1, 1, 1) / 3)
    assert report.names("adapted") == [ResEncUNet.stem]
    assert "repeated over 3 channels" in report.text()
    x = torch.randn(1, 1, 8, 8, 16)  # the same scan in every channel gives what the run's network gave
    for a, b in zip(network.encoder(x.repeat(1, 3, 1, 1, 1)), backbone.encode(x)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_channels_from_dataset_json_and_plans(backbone, plans_file, tmp_path):
    new, old = tmp_path / "dataset.json", tmp_path / "old.json"
    new.write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}}))
    old.write_text(json.dumps({"modality": {"0": "MRI"}}))
    out = tmp_path / "out"
    assert export_nnunet(backbone, out, dataset_json=new).provenance["in_channels"] == 2
    assert load(out / "checkpoint.pth")[ResEncUNet.stem].shape[1] == 2
    assert export_nnunet(backbone, out, dataset_json=old).provenance["in_channels"] == 1
    assert export_nnunet(backbone, out, plans=plans_file(2), dataset_json=new).provenance["in_channels"] == 2
    with pytest.raises(ValueError, match=r"contradictory: --in-channels says 3, .* says 2"):
        export_nnunet(backbone, out, dataset_json=new, in_channels=3)


def test_several_channels_cannot_become_another_number(tmp_path):
    with pytest.raises(ValueError, match="the data set has 3 channels and the run 2"):
        export_nnunet(ResEncUNet("S", 2), tmp_path, in_channels=3)


def test_report_names_every_tensor_once(backbone, tmp_path):
    report = export_nnunet(backbone, tmp_path)
    network = aliases(nnunets_network(tmp_path, 1))
    assert [t.name for t in report.tensors] == list(network)
    assert all(".seg_layers." in n for n in report.names("fresh"))
    assert set(report.names("copied")) == set(aliases(backbone))
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["summary"] == report.summary()
    assert len(saved["tensors"]) == len(report.tensors)
    assert set(saved["files"]) == {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}


def test_untrained_decoder_is_fresh(backbone, tmp_path):
    report = export_nnunet(Source(backbone, trained_decoder=False), tmp_path)
    weights, ours = load(tmp_path / "checkpoint.pth"), backbone.state_dict()
    for name in aliases(backbone):
        copied = name in backbone.encoder_parameter_names()
        assert (name in report.names("copied")) == copied
        if copied:
            assert torch.equal(weights[name], ours[name])
    assert not torch.equal(weights["decoder.transpconvs.0.weight"], ours["decoder.transpconvs.0.weight"])
    assert "the decoder is fresh" in report.text()


def test_strict_refuses_what_is_not_copied(backbone, tmp_path):
    export_nnunet(backbone, tmp_path / "fine", strict=True)
    for source, kwargs in ((backbone, {"in_channels": 2}), (Source(backbone, trained_decoder=False), {})):
        with pytest.raises(ValueError, match=r"--strict: '.*' would be (adapted|fresh)"):
            export_nnunet(source, tmp_path / "out", strict=True, **kwargs)
    assert not (tmp_path / "out").exists()


def test_provenance_travels_with_the_weights(backbone, tmp_path):
    provenance = {"seen_digest": "abc", "step": 7, "spacing": [1.0, 1.0, 1.0]}
    report = export_nnunet(Source(backbone, provenance=provenance), tmp_path)
    content = torch.load(tmp_path / "checkpoint.pth", weights_only=True)["ssl3d"]
    assert provenance.items() <= content.items()
    assert content["architecture"] == backbone.spec().architecture
    assert provenance.items() <= report.to_dict()["provenance"].items()


def test_a_vit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nnU-Net has no network like ViT"):
        export_nnunet(ViT("tiny", patch_size=(4, 4, 4)), tmp_path)


def test_fragment_without_plans_has_the_patch_of_the_run(backbone, tmp_path):
    export_nnunet(Source(backbone, patch_size=(20, 32, 48)), tmp_path)
    fragment = json.loads((tmp_path / "plans_fragment.json").read_text())
    assert list(fragment) == [CONFIGURATION]
    assert fragment[CONFIGURATION] == {
        "inherits_from": "3d_fullres",
        "architecture": json.loads((tmp_path / "architecture.json").read_text()),
        "patch_size": [20, 32, 48],
        "batch_size": 2,
    }
    text = (tmp_path / "HOW_TO.md").read_text()
    assert (
        'nnUNetv2_train 4 3d_fullres_ssl3d 0 -p nnUNetResEncUNetLPlans -pretrained_weights "$PWD/checkpoint.pth"'
        in text
    )
    assert "{" not in text


@pytest.mark.parametrize("planned", [False, True])
def test_how_to_has_a_trial_and_a_prediction_for_every_training(backbone, plans_file, tmp_path, planned):
    source = Source(backbone, provenance={"spacing": [1.0, 1.0, 1.0], "step": 7})
    export_nnunet(source, tmp_path / "out", plans=plans_file() if planned else None)
    text = (tmp_path / "out" / "HOW_TO.md").read_text()
    assert max(len(line) for line in text.splitlines() if not line.startswith("    ")) <= 110
    assert ", of step 7; 100 %" in text and "-device cpu" in text and "{" not in text
    trainings = [line for line in text.splitlines() if line.startswith("    nnUNetv2_train ")]
    assert [" -tr SSL3DTrial " in line for line in trainings] == [False, True, False, False][: 4 if planned else 3]
    assert text.count("    nnUNetv2_predict ") == (2 if planned else 0)
    assert "takes the same -tr as the training" in text.replace("\n", " ")


def test_plans_get_the_configuration_and_keep_the_rest(backbone, plans_file, tmp_path):
    plans = plans_file()
    plans.chmod(0o640)
    old = plans.read_text()
    report = export_nnunet(backbone, tmp_path / "out", plans=plans)
    new = json.loads(plans.read_text())
    assert new["configurations"].pop(CONFIGURATION) == {
        "inherits_from": "3d_fullres",
        "architecture": backbone.spec().architecture,
        "patch_size": [36, 56, 40],  # 37 is no multiple of the stride 4
        "batch_size": 9,
    }
    assert json.dumps(new) == json.dumps(json.loads(old))
    assert stat.S_IMODE(plans.stat().st_mode) == 0o640
    backup = plans.with_name("nnUNetResEncUNetLPlans.bak.json")
    assert backup.read_text() == old
    assert plans in report.changed and "the old file is nnUNetResEncUNetLPlans.bak.json" in report.text()
    assert "patch [37, 56, 40] became [36, 56, 40]" in report.text()
    assert (
        "nnUNetv2_train Dataset004_Hippocampus 3d_fullres_ssl3d 0 -p nnUNetResEncUNetLPlans -pretrained_weights"
        in (tmp_path / "out" / "HOW_TO.md").read_text()
    )


def test_backups_are_numbered_and_an_equal_configuration_changes_nothing(backbone, plans_file, tmp_path):
    plans = plans_file()
    export_nnunet(backbone, tmp_path / "out", plans=plans)
    first = plans.read_text()
    again = export_nnunet(backbone, tmp_path / "out", plans=plans)
    assert plans.read_text() == first
    assert len(list(tmp_path.glob("*.bak*.json"))) == 1 and not again.changed
    export_nnunet(ResEncUNet("S"), tmp_path / "out", plans=plans)  # another network
    assert plans.with_name("nnUNetResEncUNetLPlans.bak2.json").read_text() == first
    assert len(list(tmp_path.glob("*.bak*.json"))) == 2


def test_whole_plans_take_the_spacing_and_window_of_the_pretraining(backbone, plans_file, tmp_path):
    window = {"low": -1000.0, "high": 1000.0, "mean": -60.0, "std": 300.0}
    provenance = {"spacing": [2.0, 1.0, 0.5], "normalisation": {"modalities": {"ct": [window]}}}
    plans = plans_file(transpose=(2, 0, 1))
    report = export_nnunet(Source(backbone, provenance=provenance), tmp_path / "out", plans=plans)
    whole = json.loads((tmp_path / "out" / "ssl3dPlans.json").read_text())
    (configured,) = whole["configurations"].values()
    assert whole["plans_name"] == "ssl3dPlans"
    assert configured["data_identifier"] == "ssl3dPlans_3d_fullres"
    assert configured["spacing"] == [0.5, 2.0, 1.0]  # in the order nnU-Net transposes to
    assert configured["median_image_size_in_voxels"] == [72.0, 25.0, 40.0]
    assert configured["architecture"] == backbone.spec().architecture
    properties = whole["foreground_intensity_properties_per_channel"]["0"]
    assert properties | {"median": 0} == {
        "mean": -60.0, "std": 300.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0, "median": 0,
    }  # fmt: skip
    assert "transposes this data set's axes to [2, 0, 1]" in report.text()
    assert "pre-trained at 0.5, 2, 1 mm, this configuration resamples to 1, 1, 2 mm" in report.text()
    assert "nnUNetv2_preprocess -d 4 -plans_name ssl3dPlans" in (tmp_path / "out" / "HOW_TO.md").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not readable as JSON"),
        ("[1, 2]", "holds a JSON list"),
        ('{"channel_names": {"0": "CT"}}', "is not an nnU-Net plans file"),
        (
            '{"dataset_name": "D", "configurations": {"2d": {"patch_size": [8, 8]}}}',
            "has no configuration '3d_fullres'",
        ),
    ],
)
def test_files_that_are_no_plans_are_refused_and_untouched(backbone, tmp_path, text, message):
    plans = tmp_path / "plans.json"
    plans.write_text(text)
    with pytest.raises(ValueError, match=f"plans.json.*{message}"):
        export_nnunet(backbone, tmp_path / "out", plans=plans)
    assert plans.read_text() == text
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named(backbone, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        export_nnunet(backbone, tmp_path / "out", plans=tmp_path / "missing.json")
    with pytest.raises(FileNotFoundError, match=r"dataset\.json"):
        export_nnunet(backbone, tmp_path / "out", dataset_json=tmp_path / "dataset.json")


def test_a_patch_keeps_more_than_one_voxel_at_the_bottleneck():
    assert fit_patch((40, 56, 40), (8, 8, 8)) == [40, 56, 40]
    assert fit_patch((20, 100, 130), (32, 32, 32)) == [32, 96, 128]
    assert fit_patch((20, 40, 30), (32, 32, 32)) == [32, 64, 32]


def test_a_file_that_is_not_there_says_what_may_have_been_meant(backbone, plans_file, tmp_path, monkeypatch):
    def refused(path):
        with pytest.raises(FileNotFoundError) as said:
            export_nnunet(backbone, tmp_path / "out", plans=path)
        return str(said.value)

    (tmp_path / "Dataset901_Two").mkdir()
    plans_file().rename(tmp_path / "Dataset901_Two" / "nnUNetPlans.json")
    (tmp_path / "Dataset901_Two" / "nnUNetPlans.bak2.json").touch()
    assert f"; '{tmp_path}' holds Dataset901_Two; give" in refused(tmp_path / "Dataset902_X" / "nnUNetPlans.json")
    assert "Dataset901_Two' holds nnUNetPlans.json; give" in refused(tmp_path / "Dataset901_Two" / "Plans.json")
    assert "(is nnUNet_preprocessed set in this terminal?)" in refused(Path("/Dataset901_Two/nnUNetPlans.json"))
    monkeypatch.chdir(tmp_path)
    assert "; '.' holds Dataset901_Two; give" in refused(Path("preprocessed/nnUNetPlans.json"))


def test_an_old_nnunet_is_noted(backbone, plans_file, tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "2.5.2")
    plans = plans_file()
    assert "nnU-Net 2.5.2 is installed here" in export_nnunet(backbone, tmp_path / "out", plans=plans).text()
    monkeypatch.setattr(metadata, "version", lambda name: "2.10")
    content = json.loads(plans.read_text())
    del content["configurations"]["3d_fullres"]["architecture"]
    plans.write_text(json.dumps(content))
    (note,) = (n for n in export_nnunet(backbone, tmp_path / "out", plans=plans).notes if "nnU-Net, which" in n)
    assert note.startswith("nnUNetResEncUNetLPlans.json was planned by an old nnU-Net")
