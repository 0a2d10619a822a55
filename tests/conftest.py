"""Fixtures every test may use: where the real data lie, one thread a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)  # tests run in as many processes as there are cores; two threads each would only wait
DATA = Path(os.environ.get("SSL3D_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same global seed, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; the test is skipped without it."""
    if not DATA.is_dir():
        pytest.skip(f"no real scans at {DATA}: set SSL3D_DATA")
    return DATA
