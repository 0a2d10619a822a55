"""The three data sets that bench_learning.py trains and probes on: what is read, what is labelled, who is for what."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from downstream.splits import Split, draw_split, load_split
from preprocessing import convert
from ssl3d.data.format import INDEX_FILE
from ssl3d.data.phantom import write_phantom
from ssl3d.data.phantom_pathology import write_pathology
from ssl3d.data.store import open_store

PHANTOM_SEED = 2  # not 0 (the anatomy was designed on it), not 1 (the quickstart's)
# {quick: patients of which validation and test are drawn, how many, how many more have been tested, and how many more
# are tested in their place}. The figures of the 20 and the 60 tested before had been seen when settings were changed.
PHANTOM_PATIENTS = {False: (60, 10, 20, 60, 60), True: (20, 0, 8, 0, 0)}
# {name: (seed, (all, validation, test))}
PATHOLOGY = {"pathology": (3, (140, 20, 60)), "pathology_many": (11, (720, 20, 400))}
CT_SPACING_MM = 3.0  # of the labelled CT
DATA = {"phantom": "phantom", "hippocampus": "hippocampus", "ct": "one CT"}  # {name: title}, of bench_learning.py
SLAB, MARGIN = 3, 10  # labelled slices of a piece of the labelled CT, and unlabelled ones on either side of it
# TotalSegmentator's numbers (its version 2), joined to organs that lie in every slab.
ORGANS = {"liver": (5,), "spleen": (1,), "colon": (20,), "back muscles": (86, 87)}


@dataclass(frozen=True)
class Data:
    """A data set: `store` to learn from (only the split's pool where `only_pool`), `labelled` to be probed on.

    `amount`: labelled patients of the probe, in so many `subsets`; `window`: voxels (z,y,x) a CNN sees at once;
    `crop`: voxels (z,y,x) it is fine-tuned on, None where nothing is fine-tuned.
    """

    name: str
    store: Path
    labelled: Path
    split: Path
    only_pool: bool
    amount: int
    window: tuple[int, int, int]
    subsets: int = 5
    crop: tuple[int, int, int] | None = None

    def for_validation(self) -> Data:
        """The same with the validation patients as test patients: what settings may be chosen by."""
        split = load_split(self.split)
        path = self.split.with_name(f"{self.name}_validation.json")
        Split(split.pool, (), split.validation).save(path)
        return replace(self, split=path)


def prepare(name: str, folder: Path, real: Path, quick: bool = False) -> Data:
    """Convert a data set below `folder` (once) and return it; `real`: the folder of real scans;
    `quick`: a smaller phantom.

    Raises FileNotFoundError when the scans are not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name == "phantom":
        return _phantom(folder, quick)
    if name in PATHOLOGY:
        return _pathology(name, folder)
    return {"hippocampus": _hippocampus, "ct": _ct}[name](folder, real)


def _phantom(folder: Path, quick: bool) -> Data:
    first, validation, test, seen, fresh = PHANTOM_PATIENTS[quick]
    store, split = folder / "phantom.zarr", folder / "phantom_split.json"
    if not _finished(store):
        convert([write_phantom(folder / "phantom", first + seen + fresh, PHANTOM_SEED)], store, workers=1)
    if not split.exists():
        patients = sorted(set(open_store(store).index["subject"]))  # by their numbers
        drawn = draw_split(set(patients[:first]), validation, test, seed=0)
        Split(drawn.pool, drawn.validation, tuple(patients[first + seen :]) or drawn.test).save(split)
    return Data("phantom", store, store, split, True, 8, (56, 56, 56), subsets=10)


def _pathology(name: str, folder: Path) -> Data:
    store = folder / f"{name}.zarr"
    seed, (patients, validation, test) = PATHOLOGY[name]
    if not _finished(store):
        write_pathology(store, patients, seed)
    split = _split(folder / f"{name}_split.json", store, validation, test)
    return Data(name, store, store, split, True, 16, (32, 32, 32))


def _hippocampus(folder: Path, real: Path) -> Data:
    store = folder / "hippocampus.zarr"
    if not _finished(store):
        convert([real / "Task04_Hippocampus"], store, workers=1)
    split = _split(folder / "hippocampus_split.json", store, validation=16, test=34)
    return Data("hippocampus", store, store, split, True, 4, (40, 56, 40), crop=(24, 32, 24))


def _ct(folder: Path, real: Path) -> Data:
    """Learns from one whole-torso CT; probed on slabs of a labelled CT of somebody else, the only one there is."""
    store, labelled = folder / "ct.zarr", folder / "ct_labelled.zarr"
    if not _finished(store):
        scan = real / "ct_acrin_nsclc_ge" / "acrin_nsclc_042_ct.nii.gz"
        convert([scan], store, spacing=(CT_SPACING_MM,) * 3, modality="ct", workers=1)
    if not _finished(labelled):
        convert([_slabs(folder / "ct_slabs", real / "ct_mr_totalsegmentator")], labelled, spacing="keep", workers=1)
    split = folder / "ct_split.json"
    if not split.exists():
        slabs = sorted(open_store(labelled).index["subject"])
        Split(tuple(slabs[::2]), (), tuple(slabs[1::2])).save(split)
    return Data("ct", store, labelled, split, False, 2, (24, 64, 64))


def _finished(store: Path) -> bool:
    """Whether all its volumes are written: one that was stopped half way has no index yet, and goes on."""
    return (store / INDEX_FILE).exists()


def _split(path: Path, store: Path, validation: int, test: int) -> Path:
    """Patients by purpose; one whose scans have no label (the hippocampus' test scan) serves none."""
    if not path.exists():
        index = open_store(store).index
        labelled = set(index.loc[index["has_label"], "subject"])
        drawn = draw_split(set(index["subject"]), validation, test, seed=0)
        parts = (drawn.pool, drawn.validation, drawn.test)
        Split(*(tuple(p for p in part if p in labelled) for part in parts)).save(path)
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
