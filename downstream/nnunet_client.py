"""nnU-Net's commands, called as a user calls them: in an environment that may be its own, all folders below one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Client:
    """The commands of an `environment` (a virtual environment's folder; None: that of ssl3d).

    nnU-Net's data lie in `base`/raw, preprocessed and results, trainers of ours in `base`/trainer. `dataset`: the name
    of its data set; `loaders`: processes that augment while it trains.
    """

    environment: Path | None
    base: Path
    dataset: str
    loaders: int = 0

    @property
    def raw(self) -> Path:
        """The data set as nnU-Net is given it."""
        return self.base / "raw" / self.dataset

    @property
    def preprocessed(self) -> Path:
        """The data set as nnU-Net planned and preprocessed it."""
        return self.base / "preprocessed" / self.dataset

    @property
    def plans(self) -> Path:
        """What nnU-Net planned."""
        found = [path for path in self.preprocessed.glob("*Plans.json") if path.stem != "ssl3dPlans"]
        assert len(found) == 1, found
        return found[0]

    def call(self, command: str, *arguments: str, **variables: str) -> str:
        """Run a command, with more variables of the environment; returns what it said.

        Raises ValueError with nnU-Net's last words and the file of all of them.
        """
        return self.run([str(bin_folder(self.environment) / command), *arguments], command, self.base, variables)

    def run(self, command: Sequence[str], name: str, folder: Path, variables: Mapping[str, str]) -> str:
        """As `call`, any program that calls nnU-Net's command `name`, in `folder`."""
        self.base.mkdir(parents=True, exist_ok=True)
        log = self.base / f"{name}.log"
        with log.open("w") as out:
            done = subprocess.run(
                command, env=self._variables(name) | dict(variables), cwd=folder, stdout=out, stderr=subprocess.STDOUT
            )
        if done.returncode < 0:
            raise ValueError(f"{name} was killed by signal {-done.returncode}: 9 mostly means that memory ran out")
        said = log.read_text(errors="replace")
        if done.returncode:
            words = [line.strip() for line in said.splitlines() if line.strip()]
            told = [line for line in words if "Error" in line] or words or ["nothing"]
            raise ValueError(f"{name} failed, and said: {told[-1]} (all of it is in {log})")
        return said

    def _variables(self, name: str) -> dict[str, str]:
        own = {} if self.environment is None else {"PYTHONPATH": ""}  # packages of ours are not those of that one
        return {
            **os.environ,
            **own,
            "PATH": f"{bin_folder(self.environment)}{os.pathsep}{os.environ.get('PATH', '')}",
            "nnUNet_raw": str(self.base / "raw"),
            "nnUNet_preprocessed": str(self.base / "preprocessed"),
            "nnUNet_results": str(self.base / "results"),
            "nnUNet_extTrainer": str(self.base / "trainer"),
            "nnUNet_n_proc_DA": str(self.loaders if name == "nnUNetv2_train" else 1),  # others refuse 0
            "MPLBACKEND": "Agg",
        }


def bin_folder(environment: Path | None) -> Path:
    """Where the commands of an environment lie."""
    return Path(sys.executable).parent if environment is None else environment.resolve() / "bin"


@lru_cache(maxsize=8)
def version(environment: Path | None) -> str | None:
    """The version of nnunetv2 in an environment, None where there is none."""
    folder = bin_folder(environment)
    python = folder / "python"
    if not python.exists() or not (folder / "nnUNetv2_train").exists():
        return None
    code = "import importlib.metadata as m; print(m.version('nnunetv2'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
