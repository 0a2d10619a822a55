"""Who may import whom: the layering of docs/architecture.md, held by parsing every import."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ssl3d", "preprocessing", "downstream")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Layer -> what of ours it may import. The first matching prefix of a module's name is its layer; a layer may always
# import itself where it is a package.
RULES: dict[str, tuple[str, ...]] = {
    "ssl3d.seeding": (),
    "ssl3d.regions": ("ssl3d.seeding",),
    "ssl3d.schema": ("ssl3d.seeding",),  # the typed reading of a recipe, config's other half
    "ssl3d.recipe": ("ssl3d.schema",),
    "ssl3d.config": ("ssl3d.recipe", "ssl3d.schema", "ssl3d.seeding", "ssl3d.models.backbone", "ssl3d.tasks.task"),
    "ssl3d.losses": ("ssl3d.losses", "ssl3d.seeding"),
    "ssl3d.data.format": ("ssl3d.seeding",),
    "ssl3d.synth": ("ssl3d.synth",),
    "ssl3d.data": ("ssl3d.data", "ssl3d.regions", "ssl3d.seeding", "ssl3d.synth"),
    "ssl3d.viewer": ("ssl3d.viewer",),
    "ssl3d.augment": ("ssl3d.augment", "ssl3d.regions", "ssl3d.seeding"),
    "ssl3d.models": ("ssl3d.models", "ssl3d.regions", "ssl3d.seeding"),
    "ssl3d.tasks": (
        "ssl3d.tasks",
        "ssl3d.regions",
        "ssl3d.seeding",
        "ssl3d.models",
        "ssl3d.losses",
        "ssl3d.augment",
        "ssl3d.synth",
        "ssl3d.schema",  # a task of tasks says how its parts are written in a recipe
    ),
    "ssl3d.cli": ("ssl3d", "preprocessing", "downstream"),
    "ssl3d.api": ("ssl3d", "preprocessing", "downstream"),  # the same verbs in Python
    "preprocessing": ("preprocessing", "ssl3d.data", "ssl3d.seeding", "ssl3d.terminal", "ssl3d.viewer"),
    "downstream.chain": ("downstream", "preprocessing", "ssl3d"),  # the quickstart: raw files to report
    "downstream.jobs": ("downstream", "preprocessing.cluster", "ssl3d"),  # a dask scheduler, as conversions use one
    "downstream": ("downstream", "ssl3d"),
    # everything else of the library: loop, checkpoints, export, testing
    "ssl3d": ("ssl3d",),
}
NEVER = {
    "downstream": ("ssl3d.cli",),
    "ssl3d": ("ssl3d.cli", "preprocessing", "downstream"),
}
DOORS = ("ssl3d.cli", "ssl3d.__main__", "ssl3d.api")
TRAIN = ("ssl3d.train", "ssl3d.loop", "ssl3d.checkpoint", "ssl3d.optim", "ssl3d.log", "ssl3d.probe")
HEAVY = ("torch", "torchvision", "monai", "SimpleITK", "lightning", "lightning_fabric", "matplotlib", "dask", "zarr")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def exists(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(path: Path, top_level_only: bool = False) -> list[tuple[int, str]]:
    """(line, dotted module) of every import; `from package import module` names the module."""
    tree = ast.parse(path.read_text(), str(path))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.append((node.lineno, full if exists(full) else base))
    return found


def ours(name: str) -> bool:
    return name.split(".")[0] in PACKAGES


def layer(name: str) -> str:
    return next(prefix for prefix in RULES if within(name, prefix))


def test_the_walk_found_the_packages() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_layers(path: Path) -> None:
    name = module_name(path)
    allowed = RULES[layer(name)]
    for line, target in imports(path):
        if not ours(target) or target == name:
            continue
        assert any(within(target, prefix) for prefix in allowed), f"{path}:{line}: {name} must not import {target}"
        if name not in DOORS:
            for prefix in NEVER.get(name.split(".")[0], ()):
                assert not within(target, prefix), f"{path}:{line}: {name} must not import {target}"


@pytest.mark.parametrize("path", [p for p in FILES if module_name(p) in TRAIN], ids=lambda p: p.name)
def test_the_loop_knows_no_method_by_name(path: Path) -> None:
    for line, target in imports(path):
        assert not within(target, "ssl3d.tasks") or target == "ssl3d.tasks.task", f"{path}:{line}: {target}"
    methods = {p.stem for p in (ROOT / "ssl3d" / "tasks").glob("*.py")} - {"__init__", "task"}
    identifiers = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    assert not methods & {identifier.lower() for identifier in identifiers}


def test_the_command_line_starts_light() -> None:
    path = ROOT / "ssl3d" / "cli.py"
    if not path.exists():
        pytest.skip("ssl3d/cli.py is not there")
    for line, target in imports(path, top_level_only=True):
        assert target.split(".")[0] not in HEAVY, f"{path}:{line}: imports {target} before it is needed"
        assert target.split(".")[0] in sys.stdlib_module_names or ours(target) or target.split(".")[0] == "rich", target


def test_no_file_called_utils() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "misc", "common")]
