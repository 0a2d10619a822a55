"""Research layouts, a module each. A new one is a new file here with NAME, ORDER, matches, read and above."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import cast

from preprocessing.layouts.case import Case, Found, Layout, Listing
from preprocessing.tree import Folder

__all__ = ["Case", "Found", "Layout", "Listing", "above", "known", "recognise"]


@cache
def known() -> tuple[Layout, ...]:
    """All layouts, in the order they are asked."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return tuple(sorted((cast(Layout, m) for m in modules if hasattr(m, "ORDER")), key=lambda m: m.ORDER))


def recognise(folder: Folder) -> Layout | None:
    """The layout of a folder, or None: a plain tree."""
    return next((layout for layout in known() if layout.matches(folder)), None)


def above(path: Path, listing: Listing) -> tuple[Layout, Path] | None:
    """(layout, its folder) when `path` lies inside a data set and is a part of it that the layout knows."""
    for layout in known():
        folder = layout.above(path, listing)
        if folder is not None:
            return layout, folder
    return None
