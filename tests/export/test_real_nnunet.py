"""The real nnU-Net (from PyPI, in its own environment) takes an export and starts from exactly the run's weights."""

import json
import math
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from small_nnunet import DATASET, Client, install

from ssl3d.export.nnunet import export_nnunet
from ssl3d.export.report import ExportReport
from ssl3d.export.source import Source
from ssl3d.models.init import aliases
from ssl3d.models.primus import Primus, PrimusV2
from ssl3d.models.resenc import ResEncUNet
from ssl3d.testing.backbone import randomise

PROVENANCE = {
    "spacing": [1.5, 1.0, 1.0],
    "normalisation": {"modalities": {"ct": [{"low": -1000.0, "high": 1000.0, "mean": 10.0, "std": 40.0}]}},
}


@pytest.fixture(scope="session")
def environment():
    """The virtual environment of nnU-Net: SSL3D_NNUNET_VENV, or made once in the user's cache (half a minute)."""
    folder = Path(os.environ.get("SSL3D_NNUNET_VENV", Path.home() / ".cache" / "ssl3d-tests" / "nnunet"))
    try:
        install(folder)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"nnU-Net could not be installed into {folder}: {str(error.stderr).strip()[-300:]}")
    return folder


def planned(environment, base: Path, channels: int, shape=(40, 36, 28), spacing=(1.0, 1.0, 1.2)) -> Client:
    """A client whose data set is planned and preprocessed by nnU-Net's ResEnc L planner; `shape` in (x, y, z)."""
    client = Client(environment, base)
    client.make_dataset(channels, shape, spacing)
    client.line("nnUNetv2_plan_and_preprocess -d 501 -pl nnUNetPlannerResEncL -c 3d_fullres -npfp 1 -np 1", base)
    return client


def shrink(client: Client, patch: list[int]) -> dict:
    """Give the planned configuration a patch that a CPU can train; returns its architecture."""
    content = json.loads(client.plans.read_text())
    content["configurations"]["3d_fullres"]["patch_size"] = patch
    client.plans.write_text(json.dumps(content))
    return content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]


def commands(out: Path, start: str) -> list[str]:
    """The literal command lines of HOW_TO.md that begin with `start`."""
    lines = [line.strip() for line in (out / "HOW_TO.md").read_text().splitlines()]
    return [line for line in lines if line.startswith(start)]


def assert_trained(client: Client, report: ExportReport, log: str) -> dict[str, torch.Tensor]:
    """nnU-Net took the file, holds as many tensors as the report counts, and its loss is finite; returns those."""
    assert "Loading pretrained weights" in log
    losses = [float(word) for word in re.findall(r"train_loss (\S+)", log)]
    assert losses and all(map(math.isfinite, losses)), log[-2000:]
    loaded = torch.load(client.loaded, weights_only=True)
    assert len({value.data_ptr() for value in loaded.values()}) == len(report.tensors)
    return loaded


def assert_holds(loaded: dict[str, torch.Tensor], out: Path, report: ExportReport) -> None:
    """Every tensor under each of its names is the exported one, and the copied ones are the report's."""
    exported = torch.load(out / "checkpoint.pth", weights_only=True)["network_weights"]
    for name, value in loaded.items():
        assert ".seg_layers." in name or torch.equal(value, exported[name]), name
    assert set(report.names("copied")) <= set(loaded)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nnunet_starts_from_the_runs_weights(environment, tmp_path):
    client = planned(environment, tmp_path / "nnunet", channels=1)
    backbone = randomise(ResEncUNet("S"))
    out = tmp_path / "out"
    report = export_nnunet(
        backbone, out, plans=client.plans, dataset_json=client.preprocessed / "dataset.json", strict=True
    )
    line = commands(out, "nnUNetv2_train")[0]
    loaded = assert_trained(client, report, client.train(line, out))
    assert_holds(loaded, out, report)
    assert all(torch.equal(loaded[name], value) for name, value in backbone.state_dict().items())
    assert list((tmp_path / "nnunet" / "results").rglob("checkpoint_final.pth")), "it trains on from there"


@pytest.mark.acceptance
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: ResEncUNet("S"), id="ResEncUNet"),
        pytest.param(lambda: Primus("S", input_size=(16, 24, 32)), id="Primus"),
        pytest.param(lambda: PrimusV2("S", input_size=(16, 24, 32)), id="PrimusV2"),
    ],
)
def test_a_trial_says_what_was_loaded_and_predicts(environment, tmp_path, build):
    client = planned(environment, tmp_path / "nnunet", channels=2)
    labels = client.preprocessed / "dataset.json"
    report = export_nnunet(randomise(build()), tmp_path / "out", plans=client.plans, dataset_json=labels)
    (line,) = (line for line in commands(tmp_path / "out", "nnUNetv2_train") if "-tr SSL3DTrial" in line)
    found = commands(tmp_path / "out", "export nnUNet_extTrainer")[0]
    log = client.line(f"{found} && {line} -device cpu", tmp_path / "out")
    count = sum(".seg_layers." not in tensor.name for tensor in report.tensors)  # of a Primus nnU-Net loads all
    assert f"SSL3DTrial: {count} of {count} tensors" in log
    images = client.raw / "imagesTs"
    images.mkdir()
    for channel in range(2):
        image = images.parent / "imagesTr" / f"case_0_{channel:04d}.nii.gz"
        (images / image.name).write_bytes(image.read_bytes())
    line = commands(tmp_path / "out", "nnUNetv2_predict")[0]
    client.line(f"{found} && {line} -tr SSL3DTrial -device cpu -npp 1 -nps 1", tmp_path / "out")
    assert (tmp_path / "out" / "predictions" / "case_0.nii.gz").is_file()


@pytest.mark.acceptance
@pytest.mark.timeout(2400)
def test_two_channels_into_the_runs_own_large_network(environment, tmp_path):
    client = planned(environment, tmp_path / "nnunet", 2)
    backbone = randomise(ResEncUNet("L"))
    out = tmp_path / "out"
    report = export_nnunet(Source(backbone, provenance=PROVENANCE), out, plans=client.plans)
    into_own_plans, *_, into_whole_plans = commands(out, "nnUNetv2_train")
    loaded = assert_trained(client, report, client.train(into_own_plans, out))
    assert_holds(loaded, out, report)
    stem = backbone.state_dict()[ResEncUNet.stem].repeat(1, 2, 1, 1, 1) / 2
    assert all(torch.equal(loaded[name], stem) for name in aliases(backbone)[ResEncUNet.stem])

    client.loaded.unlink()
    preprocess = commands(out, "nnUNetv2_preprocess")[-1]
    client.line(f"cp ssl3dPlans.json {client.preprocessed}/ && {preprocess} -np 1", out)
    assert_holds(assert_trained(client, report, client.train(into_whole_plans, out)), out, report)
    assert (client.preprocessed / "ssl3dPlans_3d_fullres").is_dir()
    assert DATASET in into_whole_plans


@pytest.mark.acceptance
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("shape", "spacing", "patch", "stages"),
    [
        pytest.param((136, 132, 130), (1.0, 1.0, 1.0), [64, 32, 32], 6, id="isotropic"),
        pytest.param((300, 296, 24), (0.7, 0.7, 4.0), None, 7, id="anisotropic"),
        pytest.param((40, 36, 28), (1.0, 1.0, 1.2), None, 0, id="small"),
    ],
)
def test_the_planned_network_is_filled(environment, tmp_path, shape, spacing, patch, stages):
    client = planned(environment, tmp_path / "nnunet", 1, shape, spacing)
    architecture = shrink(client, patch) if patch else None
    if architecture is None:  # the least that the planned strides can take
        content = json.loads(client.plans.read_text())
        architecture = content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        total = [math.prod(step) for step in zip(*architecture["strides"])]
        shrink(client, [2 * total[0], 2 * total[1], 2 * total[2]])
    assert architecture["n_stages"] == stages or not stages
    if stages == 7:
        assert [1, 3, 3] in architecture["kernel_sizes"]
    backbone = randomise(ResEncUNet("L"))
    out = tmp_path / "out"
    exact = shape[0] == 136
    report = export_nnunet(backbone, out, plans=client.plans, architecture="planned", strict=exact)
    if stages == 7:
        assert report.names("adapted")
    else:  # a short axis is planned to be pooled less often: the transposed convolution there has another stride
        assert all(".transpconvs." in name for name in report.names("adapted"))
    loaded = assert_trained(client, report, client.train(commands(out, "nnUNetv2_train")[0], out))
    assert_holds(loaded, out, report)


@pytest.mark.acceptance
@pytest.mark.timeout(2400)
def test_an_untrained_decoder_warms_up_while_the_encoder_is_held(environment, tmp_path):
    client = planned(environment, tmp_path / "nnunet", 1)
    out = tmp_path / "out"
    source = Source(randomise(ResEncUNet("S")), trained_decoder=False)
    report = export_nnunet(source, out, plans=client.plans)
    (line,) = (line for line in commands(out, "nnUNetv2_train") if "-tr SSL3DEncoderFirst" in line)
    loaded = assert_trained(client, report, client.train(line, out))
    after = torch.load(client.trained, weights_only=True)
    for name, value in loaded.items():
        if name.startswith("encoder."):
            assert torch.equal(value, after[name]), name
    assert not torch.equal(loaded["decoder.transpconvs.0.weight"], after["decoder.transpconvs.0.weight"])


@pytest.mark.acceptance
@pytest.mark.timeout(2400)
def test_nnunets_primus_trainer_starts_from_a_primus(environment, tmp_path):
    client = planned(environment, tmp_path / "nnunet", 2)
    out = tmp_path / "out"
    backbone = randomise(Primus("S", input_size=(16, 24, 32)))
    report = export_nnunet(backbone, out, plans=client.plans, dataset_json=client.preprocessed / "dataset.json")
    line = commands(out, "nnUNetv2_train")[0]
    loaded = assert_trained(client, report, client.train(line, out))
    assert_holds(loaded, out, report)
    assert torch.equal(loaded["eva.blocks.3.attn.proj.weight"], backbone.state_dict()["eva.blocks.3.attn.proj.weight"])
