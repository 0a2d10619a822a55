"""The real nnU-Net in an environment of its own, and a small data set for it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from filelock import FileLock

from downstream import nnunet_client

ROOT = Path(__file__).resolve().parents[2]
DATASET = "Dataset501_Small"

# Stops after two steps and leaves what nnU-Net's network held just before the first, and after them.
TRAINER = """
import os

import torch
from {module} import {name}


class {name}OfTwoSteps({name}):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
        self.frozen_epochs, self.warmup_epochs = 1, 0  # of ours: two steps with the encoder held
        if {held}:
            self.num_epochs = 2

    def on_train_start(self):
        super().on_train_start()
        torch.save(self.network.state_dict(), os.environ["SSL3D_LOADED"])

    def on_train_epoch_end(self, outputs):
        super().on_train_epoch_end(outputs)
        if self.current_epoch == 0:
            torch.save(self.network.state_dict(), os.environ["SSL3D_LOADED"] + ".after")

    def perform_actual_validation(self, *args, **kwargs):
        pass
"""
MODULES = {
    "nnUNetTrainer": "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "nnUNet_Primus_S_Trainer": "nnunetv2.training.nnUNetTrainer.primus.primus_trainers",
    "SSL3DEncoderFirst": "ssl3d_trainers",
}


def install(folder: Path) -> None:
    """Make a virtual environment with nnunetv2 and the torch of constraints.txt, once; several may ask at a time.

    Raises subprocess.CalledProcessError when there is no package index.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    stamp = folder / "installed.txt"
    constraints = ROOT / "constraints.txt"
    with FileLock(f"{folder}.lock"):
        if stamp.exists() and stamp.read_text() == constraints.read_text():
            return
        shutil.rmtree(folder, ignore_errors=True)
        uv = Path(sys.executable).with_name("uv")
        python = folder / "bin" / "python"
        packages = ["-c", str(constraints), "nnunetv2"]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        _call([sys.executable, "-m", "venv", str(folder)])
        if uv.exists():
            try:
                _call([str(uv), "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *packages])
            except subprocess.CalledProcessError:  # uv reads none of pip's mirrors and certificates
                _call(pip)
        else:
            _call(pip)
        stamp.write_text(constraints.read_text())


def _call(command: list[str]) -> None:
    env = {**os.environ, "UV_SYSTEM_CERTS": "1"}
    subprocess.run(command, check=True, env=env, capture_output=True, text=True, timeout=1200)


class Client(nnunet_client.Client):
    """nnU-Net's commands by the literal lines of a page, and the data set."""

    def __init__(self, environment: Path, base: Path) -> None:
        super().__init__(environment, base, DATASET)

    @property
    def loaded(self) -> Path:
        """What the network held after loading the pre-trained weights."""
        return self.base / "loaded.pth"

    @property
    def trained(self) -> Path:
        """What the network held after the first epoch."""
        return self.loaded.with_name(f"{self.loaded.name}.after")

    def line(self, line: str, folder: Path) -> str:
        """Run a command line of nnU-Net in `folder` as a user would; returns its output. Raises ValueError."""
        (name,) = {word for word in shlex.split(line) if word.startswith("nnUNetv2_")}
        variables = {"nnUNet_compile": "f", "SSL3D_LOADED": str(self.loaded)}
        return self.run(["bash", "-c", line], name, folder, variables)

    def train(self, line: str, folder: Path) -> str:
        """A literal nnUNetv2_train line of HOW_TO.md, for two steps of its trainer on the CPU."""
        name = line.partition(" -tr ")[2].partition(" ")[0] or "nnUNetTrainer"
        trainer = self.base / "trainer"
        held = name == "SSL3DEncoderFirst"
        if held:
            shutil.copy(folder / "trainers" / "ssl3d_trainers.py", trainer)
        text = TRAINER.format(name=name, module=MODULES[name], held=held)
        (trainer / f"{name.lower()}_of_two_steps.py").write_text(text)
        line = line.replace(f" -tr {name}", "")
        return self.line(f"{line} -tr {name}OfTwoSteps -device cpu", folder)

    def make_dataset(self, channels: int, shape=(40, 36, 28), spacing=(1.0, 1.0, 1.2)) -> None:
        """Five synthetic CTs of one bright organ, `shape` in nibabel's (x, y, z)."""
        images, labels = self.raw / "imagesTr", self.raw / "labelsTr"
        for folder in (images, labels, self.base / "trainer"):
            folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        affine = np.diag([*spacing, 1.0])
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
        for case in range(5):
            organ = np.linalg.norm(grid - rng.uniform(-0.3, 0.3, (3, 1, 1, 1)), axis=0) < 0.5
            nib.save(nib.Nifti1Image(organ.astype(np.uint8), affine), labels / f"case_{case}.nii.gz")
            for channel in range(channels):
                image = (100 * organ + rng.normal(0, 20, shape)).astype(np.float32)
                nib.save(nib.Nifti1Image(image, affine), images / f"case_{case}_{channel:04d}.nii.gz")
        content = {
            "channel_names": {str(c): "CT" for c in range(channels)},
            "labels": {"background": 0, "organ": 1},
            "numTraining": 5,
            "file_ending": ".nii.gz",
        }
        (self.raw / "dataset.json").write_text(json.dumps(content))
