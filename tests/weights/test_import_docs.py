"""docs/imports.md: its literal commands run as they stand, and every format of its table has a backbone that exists."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import torchvision
from monai.networks.nets import SwinUNETR

from downstream.arms import make_arms
from ssl3d.cli import main
from ssl3d.models.resenc import ResEncUNet
from ssl3d.testing.matrix import backbone_classes
from ssl3d.testing.small_store import write_small

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "imports.md").read_text()
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    ssl3d ")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the files that the page names."""
    monkeypatch.chdir(tmp_path)
    swin = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, window_size=4)
    torch.save({"state_dict": {f"module.{k}": v for k, v in swin.state_dict().items()}}, "swin_unetr.pt")
    torch.save({"network_weights": ResEncUNet("S").state_dict()}, "checkpoint_final.pth")
    torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")
    return tmp_path


def test_the_page_has_commands():
    assert len(COMMANDS) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_literal_command_works(command, folder, capsys):
    words = shlex.split(command)[1:]
    if words[0] == "train":
        write_small(folder / "my.zarr")
        words += [
            "run.steps=1",
            "task.patch_size=[8,16,16]",
            "task.mask_block=4",
            "data.batch_size=1",
            "data.workers=0",
        ]
        words += ["data.holdout=0", "run.preview_every=0", "run.collapse_every=0"]
    assert main(words) == 0, capsys.readouterr().err
    if words[0] == "export":
        out = folder / words[words.index("--out") + 1]
        assert (out / "report.json").is_file()
        assert "checkpoint" in capsys.readouterr().out or (out / "model.safetensors").is_file()
    else:
        assert (folder / "runs" / "continued" / "initial_weights.json").is_file()


def test_every_backbone_of_the_table_exists():
    rows = [line.split("|")[3] for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line][1:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(named) >= 9 and named <= {cls.__name__ for cls in backbone_classes()}


def test_an_evaluation_takes_a_foreign_file_as_an_arm(folder):
    arms = make_arms(["checkpoint_final.pth"])
    assert [arm.name for arm in arms] == ["scratch", "checkpoint_final"]
    assert arms[1].provenance["imported"]["format"] == "nnU-Net ResidualEncoderUNet"
    wanted = torch.load("checkpoint_final.pth", weights_only=True)["network_weights"]
    found = arms[1].backbone(seed=0).state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert arms[1].to_json()["recipe"] is None
