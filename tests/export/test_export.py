"""export(): which targets there are, from a run, and the safetensors target."""

import json

import pytest
import torch

from ssl3d.export import export
from ssl3d.export.safetensors import export_safetensors
from ssl3d.export.source import Source
from ssl3d.models.backbone import BackboneSpec, build_backbone
from ssl3d.models.init import aliases, load_weights


def test_targets_that_are_not_there_name_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"no export for 'keras'; available are nnunet, .*safetensors"):
        export(tmp_path, "keras", tmp_path / "out")


def test_options_of_another_target_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--in-channels is for --to nnunet.* only"):
        export(tmp_path, "safetensors", tmp_path / "out", in_channels=2)
    with pytest.raises(ValueError, match="--minimum is 50; it is a share, from 0 to 1"):
        export(tmp_path, "nnunet", tmp_path / "out", minimum=50)


@pytest.mark.parametrize("to", ["nnunet", "safetensors"])
def test_a_missing_run_is_named(tmp_path, to):
    with pytest.raises((FileNotFoundError, ValueError), match="nowhere"):
        export(tmp_path / "nowhere", to, tmp_path / "out")


@pytest.fixture
def run(backbone, tmp_path):
    """A run directory with a checkpoint of `backbone`, as the loop writes it."""
    from ssl3d import checkpoint

    content = {
        "step": 12,
        "model": {f"backbone.{k}": v for k, v in backbone.state_dict().items()} | {"head.weight": torch.ones(2)},
        "average": None,
        "exported": "backbone.",
        "backbone_spec": checkpoint.spec_to_dict(backbone.spec()),
        "trained_decoder": True,
        "recipe": {},
        "seen_digest": "0123",
        "spacing": [1.0, 1.0, 1.0],
        "input_size": [8, 16, 24],
        "normalisation": {"normalise": "auto", "modalities": {"ct": {"/home/me/store.zarr": {"mean": 1.0}}}},
    }
    checkpoint.save(tmp_path / "run", content)
    return tmp_path / "run"


def test_a_run_is_exported_for_nnunet(run, backbone, tmp_path):
    report = export(run, "nnunet", tmp_path / "out")
    content = torch.load(tmp_path / "out" / "checkpoint.pth", weights_only=True)
    assert all(torch.equal(content["network_weights"][k], v) for k, v in backbone.state_dict().items())
    assert content["ssl3d"]["seen_digest"] == "0123" and content["ssl3d"]["step"] == 12
    assert json.loads((tmp_path / "out" / "plans_fragment.json").read_text())["3d_fullres_ssl3d"]["patch_size"] == [
        8,
        16,
        24,
    ]
    assert "store.zarr" not in json.dumps(report.to_dict())
    assert ", of step 12\n" in report.text()
    assert report.provenance["normalisation"]["modalities"] == {"ct": [{"mean": 1.0}]}


def test_safetensors_rebuild_the_backbone(run, backbone, tmp_path):
    from safetensors.torch import load_file

    report = export(run, "safetensors", tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert set(state) == set(aliases(backbone)) == set(report.names("copied"))
    sidecar = json.loads((tmp_path / "out" / "model.json").read_text())
    assert sidecar["provenance"]["seen_digest"] == "0123"
    again = build_backbone(BackboneSpec(**sidecar["backbone"]))
    load_weights(again, state)
    assert all(torch.equal(v, backbone.state_dict()[k]) for k, v in again.state_dict().items())


def test_safetensors_leave_out_a_decoder_that_was_not_trained(backbone, tmp_path):
    report = export_safetensors(Source(backbone, trained_decoder=False), tmp_path)
    assert all(n in backbone.encoder_parameter_names() for n in report.names("copied"))
    with pytest.raises(ValueError, match="--strict"):
        export_safetensors(Source(backbone, trained_decoder=False), tmp_path, strict=True)


def test_only_what_an_export_wrote_is_overwritten(run, tmp_path):
    for to in ("safetensors", "hub", "nnunet"):
        for _ in range(3):
            report = export(run, to, tmp_path / to)
        found = {path for path in (tmp_path / to).rglob("*") if path.is_file()}
        assert found == {*report.files}
        assert json.loads((tmp_path / to / "report.json").read_text())["files"] == report.written
    mine = tmp_path / "mine"
    mine.mkdir()
    for to, name in (("hub", "README.md"), ("nnunet", "report.html"), ("nnunet", "report.json")):
        (mine / name).write_text("{}")
        with pytest.raises(ValueError, match=f"--out .*mine: its '{name}' would be overwritten, .* give another"):
            export(run, to, mine)
        assert [path.name for path in mine.iterdir()] == [name] and (mine / name).read_text() == "{}"
        (mine / name).unlink()


def test_an_export_into_a_run_or_a_file_is_refused(run, tmp_path):
    (run / "recipe.yaml").write_text("run: {}")
    with pytest.raises(ValueError, match=r"--out .*run is a run, .* give a folder of its own"):
        export(run, "hub", run)
    assert (run / "recipe.yaml").read_text() == "run: {}"
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"file' is a file; give a folder"):
            export(run, "nnunet", out)
    export(run, "nnunet", run / "export")
