"""How large the code is: lines a package, the largest files, the longest functions. `make sizes` prints it."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ssl3d", "preprocessing", "downstream", "benchmarks", "tests")
LARGEST = 10


class Size(NamedTuple):
    """`lines` of a file, or of a function from its `def` to its end; `name`: PATH or PATH:FUNCTION."""

    lines: int
    name: str


def files() -> list[Size]:
    """Every Python file of the packages, the largest first."""
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    sizes = (Size(len(path.read_text().splitlines()), path.relative_to(ROOT).as_posix()) for path in found)
    return sorted(sizes, reverse=True)


def functions() -> list[Size]:
    """Every function and method, the longest first."""
    found = []
    for _, name in files():
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                found.append(Size(node.end_lineno - node.lineno + 1, f"{name}:{node.name}"))
    return sorted(found, reverse=True)


def package_of(name: str) -> str:
    """ssl3d/tasks/mae.py belongs to ssl3d/tasks, ssl3d/loop.py to ssl3d."""
    parts = Path(name).parts
    return "/".join(parts[:2]) if len(parts) > 2 and parts[0] in ("ssl3d", "tests") else parts[0]


def table() -> str:
    """The three tables, as Markdown."""
    all_files, all_functions = files(), functions()
    lines, count = Counter[str](), Counter[str]()
    for size in all_files:
        lines[package_of(size.name)] += size.lines
        count[package_of(size.name)] += 1
    rows = ["| package | files | lines |", "|---|---|---|"]
    rows += [f"| {name} | {count[name]} | {number:,} |" for name, number in lines.most_common()]
    rows += [f"| all | {len(all_files)} | {sum(lines.values()):,} |"]
    for what, sizes in (("file", all_files), ("function", all_functions)):
        rows += ["", f"| {what} | lines |", "|---|---|"]
        rows += [f"| {size.name} | {size.lines} |" for size in sizes[:LARGEST]]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
