"""The three data sets that bench_learning.py trains and probes on: what is read, what is labelled, who is for what."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from downstream.splits import Split, draw_split, load_split
from preprocessing import convert
from ssl3d.data.phantom import write_phantom
from ssl3d.data.store import open_store

PHANTOM_PATIENTS, PHANTOM_SEED = 60, 2  # not 0 (the anatomy was designed on it), not 1 (the quickstart's)
CT_SPACING_MM = 3.0  # of the labelled CT
DATA = {"phantom": "phantom", "hippocampus": "hippocampus", "ct": "one CT"}  # {name: title}
SLAB, MARGIN = 3, 20  # labelled slices of a piece of the labelled CT, and unlabelled ones on either side of it
# TotalSegmentator's numbers (its version 2), joined to organs that lie in every slab.
ORGANS = {"liver": (5,), "spleen": (1,), "colon": (20,), "back muscles": (86, 87)}


@dataclass(frozen=True)
class Data:
    """A data set: `store` to learn from, less the split's validation and test patients where `exclude`; `labelled`.

    `amount`: labelled patients of the probe; `window`: voxels (z,y,x) the frozen encoder sees at once.
    """

    name: str
    store: Path
    labelled: Path
    split: Path
    exclude: bool
    amount: int
    window: tuple[int, int, int]

    def for_validation(self) -> Data:
        """The same with the validation patients as test patients: what settings may be chosen by."""
        split = load_split(self.split)
        path = self.split.with_name(f"{self.name}_validation.json")
        Split(split.pool, (), split.validation).save(path)
        return replace(self, split=path)


def prepare(name: str, folder: Path, real: Path) -> Data:
    """Convert a data set below `folder` (once) and return it; `real`: the folder of real scans.

    Raises FileNotFoundError when the scans are not there.
    """
    makers = {"phantom": _phantom, "hippocampus": _hippocampus, "ct": _ct}
    folder.mkdir(parents=True, exist_ok=True)
    return makers[name](folder, real)


def _phantom(folder: Path, _: Path) -> Data:
    store = folder / "phantom.zarr"
    if not store.exists():
        convert([write_phantom(folder / "phantom", PHANTOM_PATIENTS, PHANTOM_SEED)], store, workers=1)
    split = _split(folder / "phantom_split.json", store, validation=10, test=20)
    return Data("phantom", store, store, split, True, 8, (56, 56, 56))


def _hippocampus(folder: Path, real: Path) -> Data:
    store = folder / "hippocampus.zarr"
    if not store.exists():
        convert([real / "Task04_Hippocampus"], store, workers=1)
    split = _split(folder / "hippocampus_split.json", store, validation=16, test=34)
    return Data("hippocampus", store, store, split, True, 4, (40, 56, 40))


def _ct(folder: Path, real: Path) -> Data:
    """Learns from one whole-torso CT; probed on slabs of a labelled CT of somebody else, the only one there is."""
    store, labelled = folder / "ct.zarr", folder / "ct_labelled.zarr"
    if not store.exists():
        scan = real / "ct_acrin_nsclc_ge" / "acrin_nsclc_042_ct.nii.gz"
        convert([scan], store, spacing=(CT_SPACING_MM,) * 3, modality="ct", workers=1)
    if not labelled.exists():
        convert([_slabs(folder / "ct_slabs", real / "ct_mr_totalsegmentator")], labelled, spacing="keep", workers=1)
    split = folder / "ct_split.json"
    if not split.exists():
        slabs = sorted(open_store(labelled).index["subject"])
        Split(tuple(slabs[::2]), (), tuple(slabs[1::2])).save(split)
    return Data("ct", store, labelled, split, False, 2, (40, 56, 56))


def _split(path: Path, store: Path, validation: int, test: int) -> Path:
    if not path.exists():
        draw_split(set(open_store(store).index["subject"]), validation, test, seed=0).save(path)
    return path


def _slabs(out: Path, source: Path) -> Path:
    """The labelled CT as an nnU-Net data set of overlapping pieces, each with SLAB labelled slices in its middle."""
    image = nib.load(source / "example_ct.nii.gz")
    voxels = np.asarray(image.dataobj).astype(np.int16)
    stated = np.asarray(nib.load(source / "example_seg.nii.gz").dataobj)
    first = voxels.shape[2] - stated.shape[2]  # the mask covers the last slices
    ignore = len(ORGANS) + 1
    label = np.full(voxels.shape, ignore, dtype=np.uint8)
    label[:, :, first:] = 0
    for value, numbers in enumerate(ORGANS.values(), start=1):
        label[:, :, first:][np.isin(stated, numbers)] = value
    for name in ("imagesTr", "labelsTr"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(first, voxels.shape[2], SLAB)):
        low, high = max(0, start - MARGIN), min(voxels.shape[2], start + SLAB + MARGIN)
        affine = image.affine.copy()
        affine[:3, 3] += affine[:3, 2] * low
        own = np.full_like(label, ignore)
        own[:, :, start : start + SLAB] = label[:, :, start : start + SLAB]
        for kind, array, suffix in (("imagesTr", voxels, "_0000"), ("labelsTr", own, "")):
            piece = nib.nifti1.Nifti1Image(array[:, :, low:high], affine)
            piece.header.set_xyzt_units("mm")
            nib.save(piece, out / kind / f"slab_{number:02d}{suffix}.nii.gz")
    names = {"background": 0} | {name: value for value, name in enumerate(ORGANS, start=1)} | {"ignore": ignore}
    description = {"channel_names": {"0": "CT"}, "labels": names, "file_ending": ".nii.gz"}
    (out / "dataset.json").write_text(json.dumps(description, indent=1))
    return out
