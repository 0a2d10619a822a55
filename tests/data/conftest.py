"""Small random stores for the tests of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_volumes import SHAPES, add_volume

from ssl3d.data.write import build_index, create_store


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """make_store(n=4, name="store.zarr", **options of add_volume) -> path of a store of n volumes, one a subject."""

    def make(n: int = 4, name: str = "store.zarr", **options: Any) -> Path:
        root = tmp_path / name
        create_store(root)
        for i in range(n):
            changes = {"subject": f"patient{i}", **options}
            add_volume(root, f"volume{i}", i, changes.pop("shape", SHAPES[i % len(SHAPES)]), **changes)
        build_index(root)
        return root

    return make
