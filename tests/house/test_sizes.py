"""No file over 400 lines and no function over 60, but for those listed here with their reason."""

from __future__ import annotations

import sizes

FILE_LINES, FUNCTION_LINES = 400, 60
FILES = {
    "tests/preprocessing/zoo.py": "a catalogue of hostile files, one after the other; nothing in it depends on another",
    "ssl3d/testing/backbone.py": "the conformance suite of a backbone: one class of short tests, inherited as a whole",
}
FUNCTIONS = {
    "ssl3d/cli.py:_verbs": "the table of verbs and their arguments, a line each",
}


def test_the_walk_found_the_packages() -> None:
    assert {size.name.split("/")[0] for size in sizes.files()} == set(sizes.PACKAGES)
    assert len(sizes.functions()) > 1000


def test_files_are_small() -> None:
    large = {size.name: size.lines for size in sizes.files() if size.lines > FILE_LINES}
    assert large.keys() == FILES.keys(), f"{large}: split a new one by its ideas, strike one that has become small"


def test_functions_are_short() -> None:
    long = {size.name: size.lines for size in sizes.functions() if size.lines > FUNCTION_LINES}
    assert long.keys() == FUNCTIONS.keys(), f"{long}: split a new one by its steps, strike one that has become short"


def test_the_table_names_every_package() -> None:
    table = sizes.table()
    assert all(f"| {name} |" in table for name in ("ssl3d", "ssl3d/tasks", "preprocessing", "downstream", "all"))
