"""Raw medical files -> store. The public door is `ssl3d convert` and `ssl3d inspect`; these are what they call."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preprocessing.inspection import inspect
    from preprocessing.pipeline import convert
    from preprocessing.report import ConvertReport

__all__ = ["ConvertReport", "convert", "inspect"]

_HOMES = {"ConvertReport": "report", "convert": "pipeline", "inspect": "inspection"}


def __getattr__(name: str) -> Any:
    """Import on first use: SimpleITK, nibabel and pydicom are not needed to say --help."""
    if name not in _HOMES:
        raise AttributeError(f"module 'preprocessing' has no attribute '{name}'")
    return getattr(importlib.import_module(f"preprocessing.{_HOMES[name]}"), name)
