"""Every shipped recipe and suite is whole, and what the documents tell a user to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from downstream.suite import load_suite
from ssl3d import cli, config

ROOT = Path(__file__).resolve().parents[2]
YAML = sorted((ROOT / "recipes").rglob("*.yaml"))
SUITES = [p for p in YAML if p.relative_to(ROOT / "recipes").parts[0] == "downstream"]
RECIPES = [p for p in YAML if p.relative_to(ROOT / "recipes").parts[0] not in ("downstream", "sweeps")]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGET = re.compile(r"^([a-z]+):", re.MULTILINE)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def says_what_it_is(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ") and f"{path.stem}" in first.split(" - ")[0] and " - " in first


def test_the_globs_found_some() -> None:
    assert len(RECIPES) == len(config.names()) and SUITES and len(DOCUMENTS) > 3


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_a_recipe_says_what_it_is(path: Path) -> None:  # tests/core/test_check.py builds them
    says_what_it_is(path)


@pytest.mark.parametrize("path", SUITES, ids=named)
def test_suite_is_complete(path: Path) -> None:
    values = ["store=/data/my.zarr", "split=/data/split.json"]
    suite = load_suite(path, values)
    assert suite.measures
    says_what_it_is(path)


def code(path: Path) -> str:
    """The fenced blocks of a document and its inline code."""
    text = path.read_text()
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", text)])


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_documented_commands_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)\b", code(path)):
        assert target in TARGET.findall(makefile), f"{path.name}: make {target}"
    for line in re.findall(r"^\s*(?:\.venv/bin/)?ssl3d (.+)$", code(path), re.MULTILINE):
        verb, *words = line.split("#")[0].split()
        if verb == "VERB":
            continue
        assert verb in cli._verbs(), f"{path.name}: ssl3d {verb}"
        known = _flags(verb)
        for flag in (word for word in words if word.startswith("--")):
            assert flag.split("=")[0] in known, f"{path.name}: ssl3d {verb} {flag}"


def _flags(verb: str) -> set[str]:
    found: set[str] = {"--help", "--debug"}

    def add(*names: str, **_: object) -> None:
        found.update(names)

    cli._verbs()[verb][3](add)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_named_files_exist(path: Path) -> None:
    text = path.read_text()
    for name in re.findall(r"`((?:ssl3d|preprocessing|downstream|tests|benchmarks|recipes|docs)/[\w./-]+)`", text):
        assert "NAME" in name or (ROOT / name).exists(), f"{path.name}: {name}"


def test_the_first_screen_of_the_readme_has_the_two_commands() -> None:
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert "make quickstart" in screen and "make test" in screen


def test_ci_runs_the_readme_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
