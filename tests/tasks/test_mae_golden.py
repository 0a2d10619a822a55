"""The losses of a short training, against a file: a change that is no change of computation leaves them as they are.

After a wanted change: SSL3D_WRITE_GOLDEN=1 python -m pytest tests/tasks/test_mae_golden.py, and say why in the commit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from ssl3d import augment
from ssl3d.tasks.mae import MAE
from ssl3d.testing.toys import TinyUNet, make_batch

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "mae.json"


def short_training() -> list[float]:
    """Six steps, each with new samples, all augmentations and padding."""
    torch.manual_seed(0)
    kinds = "GaussianNoise", "GaussianBlur", "Brightness", "Contrast", "LowResolution", "Gamma"
    transforms = [augment.SpatialTransform(p_rotation=0.5, p_scale=0.5), *(getattr(augment, k)(p=0.5) for k in kinds)]
    task = MAE(TinyUNet(), (8, 16, 24), mask_block=(2, 4, 4), augment=augment.Compose(transforms)).double()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    losses = []
    for step in range(6):
        batch = make_batch(task.region.size, batch=4, padded=step, seed=step)
        loss = task(batch.replace(image=batch.image.double()))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_losses_are_those_of_the_golden_file():
    losses = short_training()
    if os.environ.get("SSL3D_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({"loss": losses}, indent=1) + "\n")
    # Interpolation is done in float32, which processors round differently.
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())["loss"], rel=1e-4)
