"""The real nnU-Net (from PyPI, in its own environment) takes an export and starts from exactly the run's weights."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from nnunet_client import DATASET, Client, install

from ssl3d.export.nnunet import export_nnunet
from ssl3d.export.source import Source
from ssl3d.models.init import aliases
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


def planned(environment, base: Path, channels: int) -> Client:
    """A client whose data set is planned and preprocessed by nnU-Net's ResEnc L planner."""
    client = Client(environment, base)
    client.make_dataset(channels)
    client.run("nnUNetv2_plan_and_preprocess -d 501 -pl nnUNetPlannerResEncL -c 3d_fullres -npfp 1 -np 1", base)
    return client


def commands(out: Path, start: str) -> list[str]:
    """The literal command lines of HOW_TO.md that begin with `start`."""
    lines = [line.strip() for line in (out / "HOW_TO.md").read_text().splitlines()]
    return [line for line in lines if line.startswith(start)]


def assert_started_from(client: Client, backbone: ResEncUNet, adapted: torch.Tensor | None = None) -> None:
    """Every encoder and decoder tensor of nnU-Net's network, under each of its names, is the run's."""
    loaded = torch.load(client.loaded, weights_only=True)
    ours = backbone.state_dict()
    seen = set()
    for name, value in loaded.items():
        if ".seg_layers." in name:
            continue
        own = name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name
        wanted = adapted if adapted is not None and own in aliases(backbone)[ResEncUNet.stem] else ours[own]
        assert torch.equal(value, wanted), name
        seen.add(own)
    assert seen == set(ours)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nnunet_starts_from_the_runs_weights(environment, tmp_path):
    client = planned(environment, tmp_path / "nnunet", channels=1)
    backbone = randomise(ResEncUNet("S"))
    plans = client.preprocessed / "nnUNetResEncUNetLPlans.json"
    out = tmp_path / "out"
    export_nnunet(backbone, out, plans=plans, dataset_json=client.preprocessed / "dataset.json")
    (line,) = commands(out, "nnUNetv2_train")
    log = client.train(line, out)
    assert "Loading pretrained weights" in log
    assert_started_from(client, backbone)
    assert list((tmp_path / "nnunet" / "results").rglob("checkpoint_final.pth")), "it trains on from there"


@pytest.mark.acceptance
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("channels", [1, 2])
def test_nnunet_takes_its_own_large_network(environment, tmp_path, channels):
    client = planned(environment, tmp_path / "nnunet", channels)
    backbone = randomise(ResEncUNet("L"))
    out = tmp_path / "out"
    export_nnunet(
        Source(backbone, provenance=PROVENANCE), out, plans=client.preprocessed / "nnUNetResEncUNetLPlans.json"
    )
    into_own_plans, into_whole_plans = commands(out, "nnUNetv2_train")
    stem = backbone.state_dict()[ResEncUNet.stem]
    adapted = stem.repeat(1, channels, 1, 1, 1) / channels
    client.train(into_own_plans, out)
    assert_started_from(client, backbone, adapted)

    client.loaded.unlink()
    (preprocess,) = commands(out, "nnUNetv2_preprocess")
    client.run(f"cp ssl3dPlans.json {client.preprocessed}/ && {preprocess} -np 1", out)
    client.train(into_whole_plans, out)
    assert_started_from(client, backbone, adapted)
    assert (client.preprocessed / "ssl3dPlans_3d_fullres").is_dir()
    assert DATASET in into_whole_plans
