"""How others read random crops of the same volumes: MONAI and TorchIO, each in its own idiom, without workers.

They get every volume as an uncompressed NIfTI file of int16 (what is fastest for them) and read places of their own,
of the same size. A peer that is not installed is named, and left out.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from ssl3d.data.store import Store

IN_A_ROW = 8  # crops of a volume that TorchIO's queue takes, once it has read it
Method = tuple[Callable[[], object], int]  # a call, and the crops that it reads


def peer_methods(store: Store, folder: Path, size: tuple[int, int, int]) -> tuple[dict[str, Method], list[str]]:
    """({name: method}, sentences about peers that are not there)."""
    folder.mkdir()
    found: dict[str, Method] = {}
    missing = []
    files: list[Path] = []
    for package, methods in (("monai", _monai), ("torchio", _torchio)):
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(f"{package} is not installed, so not measured: pip install -r requirements-loader.txt")
            continue
        files = files or write_nifti(store, folder)
        found |= methods(files, folder, size)
    return found, missing


def write_nifti(store: Store, folder: Path) -> list[Path]:
    """Every volume as an uncompressed file of int16."""
    import nibabel

    files = []
    for row in range(len(store)):
        voxels = store.read(row, (0, 0, 0), store.shape(row)[1:])[0]
        files.append(folder / f"{row}.nii")
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), files[-1])
    return files


def _monai(files: list[Path], folder: Path, size: tuple[int, int, int]) -> dict[str, Method]:
    from monai.data import CacheDataset, PersistentDataset
    from monai.transforms import Compose, LoadImage, RandSpatialCrop

    load = LoadImage(image_only=True, ensure_channel_first=True, dtype=np.int16)
    steps = Compose([load, RandSpatialCrop(size, random_size=False)])
    steps.set_random_state(seed=0)
    on_disk = PersistentDataset(files, steps, cache_dir=folder / "monai")
    in_memory = CacheDataset(files, steps, num_workers=1, progress=False)

    def reads(dataset: PersistentDataset | CacheDataset, crops: int) -> Method:
        rng = np.random.default_rng(0)

        def read() -> None:
            for i in rng.integers(len(dataset), size=crops).tolist():
                assert tuple(dataset[i].shape[1:]) == size

        return read, crops

    return {"MONAI PersistentDataset": reads(on_disk, 3), "MONAI CacheDataset (memory)": reads(in_memory, 24)}


def _torchio(files: list[Path], folder: Path, size: tuple[int, int, int]) -> dict[str, Method]:
    import torchio

    def subjects() -> list[torchio.Subject]:
        return [torchio.Subject(image=torchio.ScalarImage(file)) for file in files]

    dataset, sampler = torchio.SubjectsDataset(subjects()), torchio.data.UniformSampler(size)
    loaded = subjects()
    for subject in loaded:
        subject.load()
    rng = np.random.default_rng(0)

    def from_files() -> None:
        i = int(rng.integers(len(dataset)))
        for patch in sampler(dataset[i], IN_A_ROW):
            assert tuple(patch["image"].data.shape[1:]) == size

    def from_memory() -> None:
        for i in rng.integers(len(loaded), size=24).tolist():
            for patch in sampler(loaded[i], 1):
                assert tuple(patch["image"].data.shape[1:]) == size
                torch.clone(patch["image"].data)  # a crop is a view until it is put into a batch

    return {
        f"TorchIO UniformSampler, {IN_A_ROW} crops a file": (from_files, IN_A_ROW),
        "TorchIO UniformSampler (memory)": (from_memory, 24),
    }
