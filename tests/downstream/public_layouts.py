"""Public data sets as their archives unpack: folders, names, descriptions, labels; the images are tiny and synthetic.

`write(name, root)` returns what `ssl3d convert` is given and the overrides of the suite of that name. Where a split
names patients, these are among them; of the rest there are as few as a split takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

SHAPE, SPACING = (18, 22, 20), (1.0, 1.0, 1.5)  # nibabel's (x, y, z)


@dataclass(frozen=True)
class Layout:
    """What to convert, the overrides of the suite, the classes that must come out, and the image channels."""

    sources: list[Path]
    overrides: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    test: tuple[str, ...] = ()  # the published test patients that were written; () where a rule draws them
    channels: int = 1


MSD = {
    "msd01_brain_tumour": ("Task01_BrainTumour", "BRATS_{:03d}", ("FLAIR", "T1w", "t1gd", "T2w"),
                           ("edema", "non-enhancing tumor", "enhancing tumour")),
    "msd02_heart": ("Task02_Heart", "la_{:03d}", ("MRI",), ("left atrium",)),
    "msd03_liver": ("Task03_Liver", "liver_{}", ("CT",), ("liver", "cancer")),
    "msd04_hippocampus": ("Task04_Hippocampus", "hippocampus_{:03d}", ("MRI",), ("Anterior", "Posterior")),
    "msd05_prostate": ("Task05_Prostate", "prostate_{:02d}", ("T2", "ADC"), ("PZ", "TZ")),
    "msd06_lung": ("Task06_Lung", "lung_{:03d}", ("CT",), ("cancer",)),
    "msd07_pancreas": ("Task07_Pancreas", "pancreas_{:03d}", ("CT",), ("pancreas", "cancer")),
    "msd08_hepatic_vessel": ("Task08_HepaticVessel", "hepaticvessel_{:03d}", ("CT",), ("Vessel", "Tumour")),
    "msd09_spleen": ("Task09_Spleen", "spleen_{}", ("CT",), ("spleen",)),
    "msd10_colon": ("Task10_Colon", "colon_{:03d}", ("CT",), ("colon cancer primaries",)),
}  # fmt: skip
FEW = ["split.validation=1"]


def write(name: str, root: Path) -> Layout:
    """The data set of a suite below `root`."""
    if name in MSD:
        return _msd(root, *MSD[name])
    return {"totalsegmentator": _totalsegmentator, "flare22": _flare, "btcv": _btcv, "amos22": _amos, "acdc": _acdc}[
        name
    ](root)


def labelled(seed: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(image, label) whose classes are bars of different brightness; in HU."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    for value in range(1, classes + 1):
        y = 2 + 3 * ((value - 1) % 6)
        z = 3 + 5 * ((value - 1) // 6)
        label[4 + seed % 3 : 14, y : y + 3, z : z + 4] = value
    tissue = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2.0, mode="nearest")  # nobody looks like another
    image = np.where(label > 0, 60.0 + 12.0 * label, -60.0) + 150 * tissue / tissue.std() + rng.normal(0, 8, SHAPE)
    image[[0, -1]] = -1000  # air around the body
    return image.astype(np.int16), label


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*SPACING, 1.0])), path)


def _msd(root: Path, folder: str, pattern: str, channels: Sequence[str], classes: Sequence[str]) -> Layout:
    """Twelve labelled cases and two of imagesTs; the numbers have gaps, as the real ones do."""
    names = [pattern.format(number) for number in (1, 3, 4, 6, 7, 8, 10, 11, 12, 19, 20, 33)]
    for seed, case in enumerate(names):
        image, label = labelled(seed, len(classes))
        several = [image + 7 * c for c in range(len(channels))]
        save(root / folder / "imagesTr" / f"{case}.nii.gz", np.stack(several, -1) if len(several) > 1 else image)
        save(root / folder / "labelsTr" / f"{case}.nii.gz", label)
    description = {
        "name": folder.partition("_")[2],
        "modality": {str(c): name for c, name in enumerate(channels)},
        "labels": {"0": "background"} | {str(v): name for v, name in enumerate(classes, start=1)},
        "numTraining": len(names),
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": [],
    }
    (root / folder / "dataset.json").write_text(json.dumps(description))
    return Layout([root / folder], [*FEW, f"split.cases={len(names)}"], tuple(classes), channels=len(channels))


def _totalsegmentator(root: Path) -> Layout:
    """Six subjects of meta.csv, one of which was not fetched."""
    root = root / "Totalsegmentator_dataset_v201"
    organs = ("liver", "spleen", "kidney_left")
    parts = ("train", "train", "train", "train", "val", "test")
    for seed, _ in enumerate(parts):
        if seed == 3:
            continue
        image, label = labelled(seed, len(organs))
        save(root / f"s{seed:04d}" / "ct.nii.gz", image)
        for value, organ in enumerate(organs, start=1):
            save(root / f"s{seed:04d}" / "segmentations" / f"{organ}.nii.gz", (label == value).astype(np.uint8))
    lines = [f"s{n:04d};5{n};m;institute C;ct abdomen;{part}" for n, part in enumerate(parts)]
    (root / "meta.csv").write_text("\n".join(["image_id;age;gender;institute;study_type;split", *lines]) + "\n")
    own = [f"split.table={root / 'meta.csv'}", "split.absent=leave_out", f"classes=[{','.join(organs)}]"]
    return Layout([root], own, tuple(sorted(organs)), ("s0005",))


def _flare(root: Path) -> Layout:
    """FLARE22Train: images with a channel's number, labels without, no description."""
    for number in range(1, 11):
        image, label = labelled(number, 13)
        save(root / "FLARE22Train" / "images" / f"FLARE22_Tr_{number:04d}_0000.nii.gz", image)
        save(root / "FLARE22Train" / "labels" / f"FLARE22_Tr_{number:04d}.nii.gz", label)
    return Layout([root / "FLARE22Train"], [*FEW, "split.cases=10"], ("liver", "right kidney", "left kidney"))


def _btcv(root: Path) -> Layout:
    """RawData/Training of the Synapse archive, a part of its 30 scans."""
    root = root / "Abdomen" / "RawData" / "Training"
    for number in (1, 2, 6, 21, 35, 36):
        image, label = labelled(number, 13)
        save(root / "img" / f"img{number:04d}.nii.gz", image)
        save(root / "label" / f"label{number:04d}.nii.gz", label)
    return Layout([root], ["split.absent=leave_out"], ("spleen", "left adrenal gland"), ("img0035", "img0036"))


def _amos(root: Path) -> Layout:
    """CT and MR in one data set, whose description calls all of it CT."""
    root = root / "amos22"
    organs = (
        "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "arota", "postcava",
        "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
    )  # fmt: skip
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for name, folder, numbers in (("training", "Tr", (1, 4, 5, 507)), ("validation", "Va", (8, 13, 517))):
        for number in numbers:
            case = f"amos_{number:04d}.nii.gz"
            image, label = labelled(number, len(organs))
            save(root / f"images{folder}" / case, image)
            save(root / f"labels{folder}" / case, label)
            lists[name].append({"image": f"./images{folder}/{case}", "label": f"./labels{folder}/{case}"})
    classes = {"0": "background"} | {str(v): organ for v, organ in enumerate(organs, start=1)}
    (root / "dataset.json").write_text(
        json.dumps({"name": "AMOS", "modality": {"0": "CT"}, "labels": classes, **lists})
    )
    own = [f"split.file={root / 'dataset.json'}", *FEW]
    return Layout([root], own, organs, ("amos_0008", "amos_0013"))


def _acdc(root: Path) -> Layout:
    """Two frames a patient with their references, the cine, and Info.cfg; the first frame of the cine is the first."""
    root = root / "ACDC" / "database"
    for folder, numbers in (("training", (1, 2, 10, 41)), ("testing", (101, 150))):
        for number in numbers:
            patient = f"patient{number:03d}"
            place = root / folder / patient
            frames = []
            for frame in (1, 12):
                image, label = labelled(number + frame, 3)
                save(place / f"{patient}_frame{frame:02d}.nii.gz", image + 1000)
                save(place / f"{patient}_frame{frame:02d}_gt.nii.gz", label)
                frames.append(image + 1000)
            save(place / f"{patient}_4d.nii.gz", np.stack([frames[0], frames[0] + 5, frames[1]], -1))
            group = "DCM" if number < 21 else "NOR"
            (place / "Info.cfg").write_text(f"ED: 1\nES: 12\nGroup: {group}\nHeight: 184.0\nNbFrame: 3\nWeight: 95.0\n")
    own = ["split.absent=leave_out"]
    return Layout([root], own, ("right ventricle", "myocardium", "left ventricle"), ("patient101", "patient150"))
