"""What is imported is declared, what is declared has its line in docs/dependencies.md, and constraints.txt pins it."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ssl3d", "preprocessing", "downstream")
# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "gdcm": "python-gdcm", "google_crc32c": "google-crc32c", "skimage": "scikit-image", "sklearn": "scikit-learn",
    "yaml": "pyyaml", "mlflow": "mlflow-skinny", "lightning_fabric": "lightning-fabric",
    "dynamic_network_architectures": "dynamic-network-architectures",
}  # fmt: skip
HEAVY = ("torch", "torchvision", "numpy", "pandas", "scipy", "monai", "zarr", "matplotlib", "wandb", "dask", "rich")


def declared() -> dict[str, set[str]]:
    """{"": install_requires, extra: its packages}, as setup.cfg has them, without versions."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {part: {re.split(r"[^\w.-]", line)[0].lower() for line in text.split("\n") if line}
            for part, text in lines.items()}  # fmt: skip


def imported() -> dict[str, str]:
    """{import name of another project: a file of ours that imports it}."""
    found = {}
    for path in (p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            found |= {name.split(".")[0]: str(path) for name in names}
    return {k: v for k, v in found.items() if k not in sys.stdlib_module_names and k not in PACKAGES}


def test_what_is_imported_is_declared() -> None:
    all_declared = set().union(*declared().values())
    found = imported()
    assert len(found) > 20
    for name, path in found.items():
        assert DISTRIBUTIONS.get(name, name) in all_declared, f"{path} imports {name}: add it to setup.cfg"


@pytest.mark.parametrize("part", declared(), ids=lambda part: part or "install_requires")
def test_every_dependency_has_its_reason_and_its_pin(part: str) -> None:
    reasons = (ROOT / "docs" / "dependencies.md").read_text().lower()
    pins = (ROOT / "constraints.txt").read_text().lower()
    for name in declared()[part]:
        assert re.search(rf"^\| `{re.escape(name)}` \|", reasons, re.MULTILINE), f"docs/dependencies.md: {name}"
        assert re.search(rf"^{re.escape(name)}(\[\w+\])?==", pins, re.MULTILINE), f"constraints.txt: {name}"


def test_help_imports_nothing_heavy() -> None:
    """`ssl3d --help` answers at once because of what it leaves alone; a stopwatch would tell the machine's load."""
    code = ("import sys\nfrom ssl3d.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
            f"sys.stderr.write(' '.join(m for m in {HEAVY} if m in sys.modules))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "convert" in done.stdout and done.stderr == ""
