"""docs/costs.md: a row a shipped recipe, and they are what is counted now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from ssl3d import config

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_costs.py"


@pytest.fixture(scope="module")
def costs() -> ModuleType:
    found = importlib.util.spec_from_file_location("make_costs", SCRIPT)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_every_recipe_has_a_row(costs: ModuleType) -> None:
    have = list(costs.rows())
    new = [name for name in config.names() if name not in have]
    assert not new, f"docs/costs.md has no row for {new}: python docs/make_costs.py {' '.join(new)}"
    assert have == config.names(), "docs/costs.md has rows of recipes that are gone, or another order: make it anew"


@pytest.mark.parametrize("name", ["mae_resenc_s", "voco_resenc_s", "quickstart/phantom"])
def test_a_row_is_what_is_counted(costs: ModuleType, name: str) -> None:
    assert costs.rows()[name] == costs.row(name)


@pytest.mark.acceptance
@pytest.mark.parametrize("name", [n for n in config.names() if n.endswith("_s")])
def test_the_rows_of_small_recipes_are_what_is_counted(costs: ModuleType, name: str) -> None:
    assert costs.rows()[name] == costs.row(name)
