"""docs/export: the literal commands of every page run as they stand, on a run in an empty folder."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from ssl3d import checkpoint
from ssl3d.cli import main
from ssl3d.export import TARGETS
from ssl3d.export import onnx as onnx_target
from ssl3d.models.segresnet import SegResNet
from ssl3d.testing.backbone import randomise

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "export").glob("*.md"))
COMMANDS = [
    (page.name, line.strip())
    for page in PAGES
    for line in page.read_text().splitlines()
    if line.startswith("    ssl3d export runs/")
]


@pytest.fixture
def folder(backbone, plans_file, tmp_path, monkeypatch):
    """A working folder with runs/mae, and a preprocessed data set of nnU-Net's; a function makes the run."""
    preprocessed = tmp_path / "preprocessed" / "Dataset004_Hippocampus"
    preprocessed.mkdir(parents=True)
    content = json.loads(plans_file(1).read_text())
    content["configurations"]["3d_fullres"]["architecture"] = backbone.spec().architecture
    (preprocessed / "nnUNetResEncUNetLPlans.json").write_text(json.dumps(content))
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    (preprocessed / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}, "labels": labels}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))

    def make(network) -> None:
        content = {
            "step": 1, "average": None, "exported": "backbone.", "trained_decoder": True, "recipe": {},
            "model": {f"backbone.{name}": value for name, value in network.state_dict().items()},
            "backbone_spec": checkpoint.spec_to_dict(network.spec()), "input_size": [8, 24, 16],
        }  # fmt: skip
        checkpoint.save(tmp_path / "runs" / "mae", content)

    return make


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_literal_command_works(page, command, folder, backbone, capsys):
    monai = page == "monai.md"
    folder(randomise(SegResNet(init_filters=8, blocks_down=(1, 1, 2), blocks_up=(1, 1))) if monai else backbone)
    words = shlex.split(os.path.expandvars(command))
    assert words.pop(0) == "ssl3d"
    if "onnx" in words and any(not onnx_target.is_installed(name) for name in onnx_target.NEEDED):
        assert main(words) == 1
        assert "pip install 'ssl3d[onnx]'" in capsys.readouterr().err
        return
    assert main(words) == 0, capsys.readouterr().err
    out = Path(words[words.index("--out") + 1])
    assert "of the parameters are filled" in capsys.readouterr().out or (out / "encoder.json").exists()
    report = json.loads((out / "report.json").read_text())
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {*report["files"]}
    assert report["to"] == words[words.index("--to") + 1]


def test_every_target_has_a_page_and_a_command():
    said = {re.search(r"--to (\w+)", command)[1] for _, command in COMMANDS}
    assert said == set(TARGETS)
    index = next(page for page in PAGES if page.name == "README.md").read_text()
    assert all(f"`{target}`" in index for target in TARGETS)


def test_the_cards_example_rebuilds_the_network(folder, backbone, monkeypatch):
    folder(backbone)
    assert main(["export", "runs/mae", "--to", "hub", "--out", "folder"]) == 0
    monkeypatch.chdir("folder")
    card = Path("README.md").read_text()
    code = card.partition("or in Python:")[2].partition("\n\n")[2].partition("\n\n\n")[0]
    lines = [
        line.removeprefix("    ") for line in code.split("\n## ")[0].splitlines() if line.startswith("    ") or not line
    ]
    image = torch.randn(1, 1, 8, 24, 16)
    found = {"image": image}
    exec("\n".join(lines), found)
    assert all(torch.equal(a, b) for a, b in zip(found["features"], backbone.encode(image), strict=True))
