"""A folder to publish: it rebuilds the network, says what was counted and measured, and nothing about anyone."""

import dataclasses
import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ssl3d.export.hub import export_hub
from ssl3d.export.source import Source
from ssl3d.models.backbone import BackboneSpec, build_backbone
from ssl3d.models.init import load_weights
from ssl3d.models.segresnet import SegResNet
from ssl3d.models.vit import ViT
from ssl3d.weights import import_weights

RECIPE = """
run: {dir: /home/someone/runs/secret, steps: 40, seed: 0}
data: {store: /data/hospital.zarr, include: [patient_007], exclude: /data/split.json, batch_size: 2}
task: {_target_: ssl3d.tasks.mae.MAE, mask_ratio: 0.75}
optim: {name: sgd, lr: 0.01}
wandb: {mode: online, project: hospital, entity: someone}
"""


@pytest.fixture
def run(tmp_path):
    """A run directory with all that the card is made from, and an evaluation beside it."""
    folder = tmp_path / "chain" / "run"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    lines = [{"step": 10, "loss": 0.75}, {"step": 20, "time/step": 0.1}, {"step": 40, "loss": 0.5}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    seen = pd.DataFrame({"fingerprint": ["a", "b", "c"], "subject": ["patient_007", "patient_007", "patient_008"]})
    seen.to_parquet(folder / "seen.parquet")
    rows = [
        {"run": run, "dataset": "spleen", "schedule": "probe", "n_labelled": 4, "split": split, "case": case,
         "label": "mean_foreground", "metric": "dice", "value": value}
        for run, split, case, value in [
            (None, "test", "x", 0.25), (None, "test", "y", 0.35), ("/old/place/run", "test", "x", 0.5),
            ("/old/place/run", "test", "y", 0.6), ("/other", "test", "x", 0.9), (None, "validation", "z", 1.0),
        ]
    ]  # fmt: skip
    (folder.parent / "evaluate").mkdir()
    pd.DataFrame(rows).to_csv(folder.parent / "evaluate" / "results.csv", index=False)
    return folder


PROVENANCE = {
    "step": 40,
    "seen_digest": "0123abcd",
    "spacing": [2.0, 1.0, 1.0],
    "normalisation": {"modalities": {"ct": [{"low": -1000.0, "high": 1000.0, "mean": 12.0, "std": 300.0}]}},
}


def test_the_card_says_what_the_run_counted_and_measured(run, backbone, tmp_path):
    out = tmp_path / "out"
    source = Source(backbone, patch_size=(8, 16, 24), batch_size=2, provenance=PROVENANCE, run=run)
    report = export_hub(source, out)
    card = (out / "README.md").read_text()
    for words in (
        "ResEncUNet, pre-trained by MAE", "3 volumes of 2 subjects", "2, 1, 1 mm", "[-1000, 1000] HU, minus 12",
        "40 steps of 2 regions", "8 x 16 x 24 voxels", "optimiser sgd, learning rate 0.01", "0.75 at step 10, 0.5 at",
        "| spleen | probe | 4 | dice | 0.300 | 0.550 | 2 |", "0123abcd", "## Limits", "## Licence", "## Cite",
    ):  # fmt: skip
        assert words in card, words
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in report.files} == {p.name for p in out.iterdir()}


def test_nobody_and_no_place_is_named(run, backbone, tmp_path):
    out = tmp_path / "out"
    export_hub(Source(backbone, provenance=PROVENANCE, run=run), out)
    for path in out.iterdir():
        content = path.read_bytes()
        for word in (b"patient_", b"hospital", b"someone", b"secret", str(tmp_path).encode()):
            assert word not in content, (path.name, word)
    assert "mask_ratio: 0.75" in (out / "recipe.yaml").read_text()


def test_the_folder_rebuilds_the_network(backbone, tmp_path):
    report = export_hub(backbone, tmp_path, strict=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["backbone"] == json.loads(json.dumps(dataclasses.asdict(backbone.spec())))
    again = build_backbone(BackboneSpec(**config["backbone"]))
    load_weights(again, load_file(tmp_path / "model.safetensors"))
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in again.state_dict().items())
    card = (tmp_path / "README.md").read_text()
    assert "not known" in card and "None was found" in card
    assert "no run directory was given" in report.text()


def test_a_decoder_that_was_not_trained_is_left_out_and_said(backbone, tmp_path):
    export_hub(Source(backbone, trained_decoder=False), tmp_path)
    assert "The decoder was not trained" in (tmp_path / "README.md").read_text()
    again, report = import_weights(tmp_path / "model.safetensors")
    encoder = backbone.encoder_parameter_names()
    assert all(torch.equal(again.state_dict()[name], backbone.state_dict()[name]) for name in encoder)
    assert report.share("decoder") == 0


@pytest.mark.parametrize(
    ("network", "command"),
    [
        (SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,)), "ssl3d export model.safetensors --to monai "),
        (ViT("tiny", patch_size=(4, 4, 4)), "ssl3d train RECIPE model.init=model.safetensors"),
    ],
)
def test_the_card_names_a_program_that_has_the_network(network, command, tmp_path):
    export_hub(network, tmp_path)
    assert f"    {command}" in (tmp_path / "README.md").read_text()
