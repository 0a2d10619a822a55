"""ssl3d -> another program's file -> ssl3d: every bit comes back."""

import json

import pytest
import torch

from ssl3d import checkpoint
from ssl3d.export import export
from ssl3d.models.backbone import build_backbone
from ssl3d.models.dino_vit import DinoViT
from ssl3d.models.plain_unet import PlainConvUNet
from ssl3d.models.primus import Primus
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.segresnet import SegResNet
from ssl3d.models.swin import SwinUNETR
from ssl3d.models.vit import ViT
from ssl3d.testing.backbone import randomise
from ssl3d.weights import Choices, fill_from, import_weights

NETWORKS = {
    "resenc": lambda: ResEncUNet("S", 2, {"strides": [1, [1, 2, 2], 2, 2], "features_per_stage": [4, 6, 8, 10]}),
    "plain": lambda: PlainConvUNet("S", 2, {"strides": [1, [1, 2, 2], 2, 2], "features_per_stage": [4, 6, 8, 10]}),
    "primus": lambda: Primus("tiny", 2, input_size=(16, 24, 32)),
    "primus_s": lambda: Primus("S", 2, input_size=(16, 24, 32)),
    "swin": lambda: SwinUNETR("tiny", 2),
    "segresnet": lambda: SegResNet(8, 2, (1, 2, 1), (1, 1)),
    "vit": lambda: ViT("tiny", 2, (4, 8, 8)),
    "dino": lambda: DinoViT(96, 2, 3, 2, (4, 8, 8), (8, 16, 24), registers=2),
}
TARGETS = [
    ("resenc", "nnunet", "checkpoint.pth"), ("plain", "nnunet", "checkpoint.pth"),
    ("resenc", "nnssl", "checkpoint_final.pth"), ("plain", "nnssl", "checkpoint_final.pth"),
    pytest.param("primus_s", "nnssl", "checkpoint_final.pth", marks=pytest.mark.slow),
    pytest.param("swin", "monai", "model.pt", marks=pytest.mark.slow), ("segresnet", "monai", "model.pt"),
    pytest.param("swin", "safetensors", "model.safetensors", marks=pytest.mark.slow),
    *((name, "safetensors", "model.safetensors") for name in NETWORKS if name not in ("swin", "primus_s")),
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """run(backbone) -> a run directory as the loop writes it."""

    def write(backbone):
        content = {
            "step": 3, "recipe": {}, "average": None, "exported": "backbone.", "trained_decoder": True,
            "model": {f"backbone.{k}": v for k, v in backbone.state_dict().items()}, "seen_digest": "0123",
            "backbone_spec": checkpoint.spec_to_dict(backbone.spec()), "spacing": [1.0, 1.0, 1.0],
            "input_size": list(getattr(backbone, "input_size", (16, 32, 48))), "batch_size": 2,
        }  # fmt: skip
        checkpoint.save(tmp_path / "run", content)
        return tmp_path / "run"

    return write


@pytest.mark.parametrize(("name", "target", "file"), TARGETS)
def test_every_bit_comes_back(run, tmp_path, name, target, file):
    backbone = randomise(NETWORKS[name]()).eval()
    export(run(backbone), target, tmp_path / "out")
    back, report = import_weights(next((tmp_path / "out").rglob(file)))
    state = backbone.state_dict()
    assert type(back) is type(backbone) and set(back.state_dict()) == set(state)
    assert all(torch.equal(v, state[k]) for k, v in back.state_dict().items())
    report.refuse_inexact(target)
    x = torch.randn(1, 2, *(2 * s for s in backbone.total_stride))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(back.encode(x), backbone.encode(x), strict=True))
    if target != "monai":  # whose file is a bare state dict
        assert report.provenance["seen_digest"] == "0123", "what it saw can still be told"


def test_a_foreign_file_is_exported_with_both_reports(tmp_path, resenc):
    path = tmp_path / "theirs.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in resenc().state_dict().items()}}, path)
    report = export(path, "safetensors", tmp_path / "out")
    assert "nnU-Net ResidualEncoderUNet into ResEncUNet" in report.text() and "safetensors:" in report.text()
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["imported"]["digest"] == report.imported.digest and written["imported"]["summary"]
    assert "(imported)" in (tmp_path / "out" / "report.html").read_text()
    back, _ = import_weights(tmp_path / "out" / "model.safetensors")
    first, _ = import_weights(path)
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in back.state_dict().items())


def test_options_of_imports_are_refused_for_a_run(run, tmp_path):
    folder = run(NETWORKS["resenc"]())
    with pytest.raises(ValueError, match="--trust is for weights files of other programs"):
        export(folder, "safetensors", tmp_path / "out", trust=True)


def test_strict_and_minimum_reach_the_import(tmp_path, resenc):
    network = resenc()
    path = tmp_path / "encoder.pth"
    state = {k: v for k, v in network.state_dict().items() if k.startswith("encoder.")}
    torch.save({"network_weights": state}, path)
    with pytest.raises(ValueError, match=r"--strict: 'decoder\..*would be fresh"):
        export(path, "safetensors", tmp_path / "out", strict=True)
    torch.save({"network_weights": {k: v for k, v in state.items() if "stages.2" not in k or "norm" in k}}, path)
    with pytest.raises(ValueError, match=r"holds part of an encoder: 'encoder\.stages\.2\..*' is missing"):
        export(path, "safetensors", tmp_path / "out")
    torch.save(
        {k: v for k, v in NETWORKS["segresnet"]().state_dict().items() if not k.startswith("down_layers.2")}, path
    )
    backbone = NETWORKS["segresnet"]()
    with pytest.raises(ValueError, match=r"its blocks_down is|only .* would be filled"):
        fill_from(backbone, path, choices=Choices(minimum=0.9))


def test_the_architecture_of_an_imported_network_builds_again(tmp_path, resenc):
    path = tmp_path / "theirs.pth"
    torch.save({"network_weights": resenc().state_dict()}, path)
    backbone, _ = import_weights(path)
    assert build_backbone(backbone.spec()).spec() == backbone.spec()
