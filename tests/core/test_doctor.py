"""Each fault that the doctor knows is planted and found; a sound machine is told so."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest

from ssl3d import cli, doctor
from ssl3d.data import machine as limits
from ssl3d.doctor import State, machine, packages, pytorch, torch_probe

GPU = {"name": "NVIDIA H100", "gib": 79.6, "capability": [9, 0]}
SOUND = {"torch": "2.8.0+cu128", "cuda": "12.8", "hip": None, "archs": ["sm_80", "sm_90", "compute_90"],
         "available": True, "devices": [GPU], "torchvision": "0.23.0+cu128"}  # fmt: skip
NMS = "operator torchvision::nms does not exist"


@pytest.fixture
def said(monkeypatch):
    """said(**changes): what PyTorch says of itself is SOUND with these changes; None takes a key away."""

    def plant(wanted: str | None = "2.8.0", driver: tuple[str, str] | None = ("570.1", "12.8"), **changes: object):
        answer = {key: value for key, value in (SOUND | changes).items() if value is not None or key in ("cuda", "hip")}
        monkeypatch.setattr(pytorch, "probe", lambda: answer)
        monkeypatch.setattr(pytorch, "_wanted_torch", lambda: wanted)
        monkeypatch.setattr(pytorch, "driver", lambda: driver)
        return pytorch.pytorch()

    return plant


def test_a_sound_pytorch(said):
    assert [(f.about, f.state) for f in said()] == [(a, State.OK) for a in ("torch", "torchvision", "GPU")]


@pytest.mark.parametrize(
    ("changes", "about", "state", "words"),
    [
        ({"torch_error": "libcudnn.so.9: cannot open"}, "torch", State.WRONG, "libcudnn"),
        ({"torch": "2.9.1"}, "torch", State.WARNING, "conv3d"),
        ({"torchvision": None, "torchvision_error": NMS, "wanted": "2.7.1"}, "torchvision", State.WRONG, "torch 2.7.1"),
        ({"torchvision": None, "torchvision_error": NMS}, "torchvision", State.WRONG, "nms"),
        ({"wanted": "2.7.1"}, "torchvision", State.WARNING, "2.7.1"),
        ({"devices": [], "driver": None}, "GPU", State.WARNING, "CPU"),
        ({"devices": [], "cuda": None}, "GPU", State.WRONG, "without CUDA"),
        ({"devices": [], "cuda": "13.2"}, "GPU", State.WRONG, "runs up to 12.8"),
        ({"devices": [], "cuda_error": "no such device"}, "GPU", State.WRONG, "no such device"),
        ({"devices": [GPU | {"capability": [12, 0]}]}, "GPU", State.OK, "H100"),
        ({"devices": [GPU | {"capability": [12, 0]}], "archs": ["sm_80", "sm_90"]}, "GPU", State.WRONG, "sm_120"),
        ({"devices": [GPU | {"capability": [6, 1]}]}, "GPU", State.WRONG, "sm_61"),
    ],
)
def test_faults_of_pytorch(said, changes, about, state, words):
    found = next(f for f in said(**changes) if f.about == about)
    assert found.state == state and words in found.sentence
    assert found.remedy or state == State.OK


def test_the_probe_survives_what_it_looks_at(tmp_path, monkeypatch):
    for text, words in (("raise RuntimeError('broken build')", "broken build"), ("import os; os.abort()", "exit code")):
        (tmp_path / "torch.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        assert words in torch_probe.probe()["torch_error"]
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(torch_probe, "SECONDS", 1.0)
    assert "more than 1 s" in torch_probe.probe()["torch_error"]


def test_the_driver_is_read_from_what_nvidia_smi_prints(monkeypatch):
    text = "| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15    CUDA Version: 12.4  |"
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, text, ""))
    assert pytorch.driver() == ("550.54.15", "12.4")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert pytorch.driver() is None


def test_cores_and_memory(monkeypatch):
    monkeypatch.setattr(limits, "available_cores", lambda: 1)
    monkeypatch.setattr(limits, "available_memory", lambda: 2 << 30)
    assert [machine.cores()[0].state, machine.memory()[0].state] == [State.WARNING] * 2
    monkeypatch.setattr(limits, "available_cores", lambda: 4)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr(limits, "available_memory", lambda: 64 << 30)
    assert machine.cores()[0].sentence == "4 of 64 may be used"
    assert [machine.cores()[0].state, machine.memory()[0].state] == [State.OK] * 2


@pytest.mark.parametrize(("gib", "state"), [(0.5, State.WRONG), (5, State.WARNING), (500, State.OK)])
def test_room_on_a_disk(tmp_path, monkeypatch, gib, state):
    usage = namedtuple("usage", "total used free")(0, 0, int(gib * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert machine.disk("--dir", str(tmp_path / "not" / "yet"))[0].state == state
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_files(monkeypatch, tmp_path):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "NamedTemporaryFile", refuse)
    found = machine.disk("--store", str(tmp_path))[0]
    assert found.state == State.WRONG and "Permission denied" in found.sentence


def test_limits(monkeypatch, tmp_path):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 65536))
    found = machine.open_files()[0]
    assert found.state == State.WARNING and found.remedy == "ulimit -n 4096"
    monkeypatch.setattr(machine, "SHM", tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(64 << 20, 0, 64 << 20))
    found = machine.shared_memory()[0]
    assert found.state == State.WARNING and "64 MiB" in found.sentence and "--shm-size" in found.remedy
    monkeypatch.setattr(machine, "SHM", tmp_path / "none")
    assert machine.shared_memory() == []


def test_packages(monkeypatch):
    monkeypatch.setattr(packages.sys, "version_info", (3, 10, 1))
    assert packages.versions()[0].state == State.WARNING
    needs = ["zarr>=3", "nothing-of-the-kind>=1", "absent; extra == 'y'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    found = packages.required()[0]
    assert found.state == State.WRONG and found.remedy == "pip install nothing-of-the-kind"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    found = packages.extras()[0]
    assert found.state == State.OK and "without onnx" in found.sentence and "ssl3d[onnx]" in found.remedy


def test_who_is_logged_in_to_wandb(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_SWEEP_ID", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    assert packages.wandb()[0].state == State.OK and "not logged in" in packages.wandb()[0].sentence
    monkeypatch.setenv("WANDB_MODE", "online")
    assert packages.wandb()[0].state == State.WRONG
    file.write_text("machine api.wandb.ai login user password 0123\n")
    assert packages.wandb()[0].state == State.OK and "0123" not in packages.wandb()[0].line()
    file.write_text("machine\n")
    assert packages.wandb()[0].state == State.WARNING
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert packages.wandb()[0].state == State.OK


def test_the_verb_fails_when_something_is_wrong(monkeypatch, capsys, said):
    said()
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(line.split()[0] in ("ok", "warning") for line in text.splitlines()[:-1])
    said(torchvision=None, torchvision_error=NMS)
    assert cli.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {"about", "state", "sentence", "remedy"} == set(found[0])
    assert [f["about"] for f in found if f["state"] == "wrong"] == ["torchvision"]


def test_a_check_that_cannot_be_made_is_a_finding(monkeypatch):
    def missing() -> int:
        raise ImportError("No module named 'psutil'")

    monkeypatch.setattr(machine, "memory", missing)
    monkeypatch.setattr(pytorch, "probe", lambda: {"torch_error": "none"})
    found = {f.about: f for f in doctor.examine()}
    assert found["memory"].state == State.WRONG and "psutil" in found["memory"].sentence
    assert "cores" in found and "wandb" in found, "the others are made all the same"


def test_no_module_of_the_doctor_needs_torch():
    for path in Path(doctor.__file__).parent.glob("*.py"):
        if path.stem != "torch_probe":
            assert "import torch" not in path.read_text()
