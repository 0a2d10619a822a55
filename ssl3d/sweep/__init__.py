"""Sweeps without a server: the YAML of a wandb sweep, run on this machine."""

from __future__ import annotations

from ssl3d.sweep.local import run_local

__all__ = ["run_local"]
