"""Raw medical files -> store. The public door is `ssl3d convert` and `ssl3d inspect`; these are what they call."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preprocessing.inspection import inspect
    from preprocessing.pipeline import convert
    from preprocessing.report import ConvertReport
    from preprocessing.verification import VerifyReport, verify

__all__ = ["ConvertReport", "VerifyReport", "convert", "inspect", "verify"]

_HOMES = {
    "ConvertReport": "report",
    "VerifyReport": "verification",
    "convert": "pipeline",
    "inspect": "inspection",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    """Import on first use: nibabel and pydicom are not needed to say --help."""
    if name not in _HOMES:
        raise AttributeError(f"module 'preprocessing' has no attribute '{name}'")
    return getattr(importlib.import_module(f"preprocessing.{_HOMES[name]}"), name)
