"""The distributions hold what the checkout holds: built by the backend itself, without network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ssl3d

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ssl3d", "preprocessing", "downstream", "recipes")
OTHERS = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md",
          "SECURITY.md", "CITATION.cff", "Dockerfile", "Makefile", "constraints.txt", "ruff.toml")  # fmt: skip
FOLDERS = (*PACKAGES, "tests", "docs", "benchmarks", ".ci")
DATA = (".yaml", ".json", ".sh", ".typed", ".css", ".js")
NEWER = 77  # of setuptools, as pyproject.toml asks


def build(source: Path, kind: str, out: Path) -> Path:
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(out)]
    said = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True).stdout
    return out / said.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], Path]:
    """Names in the source distribution, and the wheel made from it as an installer makes it."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < NEWER:
        pytest.skip(f"building needs setuptools {NEWER} or newer")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in OTHERS:
        shutil.copy(ROOT / name, source / name)
    with tarfile.open(build(source, "sdist", out)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(out / "unpacked", filter="data")
    (unpacked,) = (out / "unpacked").iterdir()
    return names, build(unpacked, "wheel", out)


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_every_data_file(built: tuple[set[str], Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
    wanted = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*")
              if path.suffix in (".py", *DATA)}  # fmt: skip
    assert len(wanted) > 300 and not wanted - names
    assert {Path(name).parts[0] for name in names} == {*PACKAGES, f"ssl3d-{ssl3d.__version__}.dist-info"}
    assert "ssl3d/py.typed" in names
    assert f"ssl3d-{ssl3d.__version__}.dist-info/licenses/LICENSE" in names


@pytest.mark.slow
def test_the_source_distribution_can_be_tested_and_built_again(built: tuple[set[str], Path]) -> None:
    assert not {*OTHERS, ".ci/run", "tests/conftest.py", "docs/architecture.md", "recipes/cluster/slurm.sh"} - built[0]


@pytest.mark.slow
def test_the_wheel_runs_outside_the_checkout(built: tuple[set[str], Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(tmp_path / "site")
    code = ("import sys\nother = [p for p in sys.path if 'site-packages' in p or 'python3' in p]\n"
            "sys.path[:] = [sys.argv[1], *other]\n"
            "import ssl3d.cli, ssl3d.config\nassert ssl3d.__file__.startswith(sys.argv[1]), ssl3d.__file__\n"
            "assert str(ssl3d.config.RECIPES).startswith(sys.argv[1])\n"
            "sys.exit(ssl3d.cli.main(sys.argv[2:]))")  # fmt: skip
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "site")]
    said = subprocess.run([*command, "recipes"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "mae_resenc_l" in said and len(said.splitlines()) > 40
    copied = subprocess.run([*command, "copy", "cluster/slurm.sh", "job.sh"], cwd=tmp_path, capture_output=True)
    assert copied.returncode == 0 and (tmp_path / "job.sh").read_text().startswith("#!")
