"""A small store with targets, its split, and the smallest suite of volume targets."""

from __future__ import annotations

import json
from pathlib import Path

from ssl3d.data.phantom_pathology import write_pathology

PATIENTS = 10


def write_data(root: Path, patients: int = PATIENTS) -> tuple[Path, Path]:
    """(store, split file): two validation and four test patients, the rest the pool."""
    store = write_pathology(root / "pathology.zarr", patients, seed=3)
    names = [f"patient_{i + 1:04d}" for i in range(patients)]
    split = root / "split.json"
    split.write_text(json.dumps({"pool": names[6:], "validation": names[4:6], "test": names[:4]}))
    return store, split


def volume_suite(store: Path, split: Path, **changes) -> dict:
    """A suite of all measures of volumes, as small as it gets."""
    both = {"n_labelled": [2, 3], "seeds": 2, "patch_size": [32, 40, 40]}  # a whole volume
    train = {
        **both, "patch_size": [16, 24, 24], "window": [32, 40, 40], "steps": 2, "batch_size": 2, "seeds": 2,
        "n_labelled": [2], "optim": {"lr": [0.01, 0.001]}, "tune": {"n_labelled": 2, "seeds": 1},
    }  # fmt: skip
    values = {
        "name": "tiny",
        "store": str(store),
        "split": str(split),
        "target": "pathology",
        "workers": 1,
        "precision": "32-true",
        "measures": {
            "probe": {"_target_": "downstream.volume_probe.VolumeProbe", **both},
            "neighbours": {"_target_": "downstream.volume_probe.VolumeNeighbours", **both},
            "finetune": {"_target_": "downstream.volume_finetune.VolumeFinetune", **train},
        },
    }
    return values | changes
