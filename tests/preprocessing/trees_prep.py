"""A small tree of every layout, written by the tests: non-cubic, anisotropic volumes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from tests_prep import oblique, save, smooth

SHAPE = (11, 9, 8)
AFFINE = oblique((0.9, 1.2, 2.0), 15)
BRATS_OLD = ("t1", "t1ce", "t2", "flair")
BRATS_NEW = ("t1n", "t1c", "t2w", "t2f")


def image(path: Path, seed: int = 0, frames: int = 1) -> Path:
    """A scan, or a series of frames."""
    data = np.stack([smooth(SHAPE, 100 * seed + frame) for frame in range(frames)], -1)
    return save(path, data if frames > 1 else data[..., 0], AFFINE)


def mask(path: Path, low: int = 2, value: int = 1, shape: tuple[int, int, int] = SHAPE) -> Path:
    """A box of one class on the grid of `image`."""
    label = np.zeros(shape, np.uint8)
    label[low : low + 4, 2:6, 3:6] = value
    return save(path, label, AFFINE)


def decathlon(root: Path) -> Path:
    """3 cases, 2 labelled, 1 of imagesTs, 2 channels each in one 4D file."""
    for number, (folder, case) in enumerate((("Tr", "prostate_00"), ("Tr", "prostate_01"), ("Ts", "prostate_03"))):
        image(root / f"images{folder}" / f"{case}.nii.gz", number, frames=2)
        if folder == "Tr":
            mask(root / f"labels{folder}" / f"{case}.nii.gz")
    labels = {"0": "background", "1": "PZ"}
    description = {"modality": {"0": "T2", "1": "ADC"}, "labels": labels, "training": [], "test": []}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def nnunet(root: Path) -> Path:
    """2 cases of 2 channels, both labelled."""
    for number, case in enumerate(("case_a", "case_b")):
        for channel in range(2):
            image(root / "imagesTr" / f"{case}_000{channel}.nii.gz", 10 * number + channel)
        mask(root / "labelsTr" / f"{case}.nii.gz")
    description = {"channel_names": {"0": "T1", "1": "CT"}, "labels": {"background": 0, "tumour": 1}}
    (root / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))
    return root


def bids(root: Path) -> Path:
    """2 subjects: one with two sessions and a run of 3 frames, one without sessions; what is no scan; derivatives."""
    first = root / "sub-01"
    image(first / "ses-1" / "anat" / "sub-01_ses-1_T1w.nii.gz", 1)
    image(first / "ses-1" / "func" / "sub-01_ses-1_task-rest_bold.nii.gz", 2, frames=3)
    image(first / "ses-1" / "fmap" / "sub-01_ses-1_phasediff.nii.gz", 3)
    image(first / "ses-2" / "perf" / "sub-01_ses-2_asl.nii.gz", 4)
    image(root / "sub-02" / "anat" / "sub-02_T1w.nii.gz", 5)
    mask(root / "sub-02" / "anat" / "sub-02_T1w_defacemask.nii.gz")
    image(root / "derivatives" / "pipeline" / "sub-02" / "anat" / "sub-02_desc-preproc_T1w.nii.gz", 6)
    (root / "dataset_description.json").write_text("{}")
    (first / "ses-1" / "anat" / "sub-01_ses-1_T1w.json").write_text("{}")
    table = "participant_id\tage\tsex\tremarks\nsub-01\t61.5\tF\tn/a\nsub-02\tn/a\tM\tn/a\n"
    (root / "participants.tsv").write_text(table)
    return root


def totalsegmentator(root: Path) -> Path:
    """2 subjects; the second has a class less and is an MR."""
    image(root / "s0001" / "ct.nii.gz", 1)
    for number, name in enumerate(("spleen", "aorta", "liver")):
        mask(root / "s0001" / "segmentations" / f"{name}.nii.gz", low=number)
    image(root / "s0002" / "mri.nii.gz", 2)
    for number, name in enumerate(("liver", "aorta")):
        mask(root / "s0002" / "segmentations" / f"{name}.nii.gz", low=3 + number)
    (root / "meta.csv").write_text("image_id;age\ns0001;60\n")
    return root


def flare(root: Path) -> Path:
    """2 cases of one channel, one labelled, no dataset.json."""
    image(root / "imagesTr" / "FLARE22_Tr_0001_0000.nii.gz", 1)
    image(root / "imagesTr" / "FLARE22_Tr_0002_0000.nii.gz", 2)
    mask(root / "labelsTr" / "FLARE22_Tr_0001.nii.gz")
    return root


def brats(
    root: Path, contrasts: tuple[str, ...] = BRATS_OLD, mark: str = "_", name: str = "BraTS20_Training_00"
) -> Path:
    """2 cases, labelled; the second lacks a contrast."""
    for number in (1, 2):
        case = f"{name}{number}"
        for channel, contrast in enumerate(contrasts):
            if (number, channel) != (2, 1):
                image(root / case / f"{case}{mark}{contrast}.nii.gz", 10 * number + channel)
        mask(root / case / f"{case}{mark}seg.nii.gz", value=2)
    return root


def plain_tree(root: Path) -> Path:
    """2 subjects with files of the same names; one has two visits, one a mask that fits and one that does not."""
    image(root / "DOE_JANE" / "2019-03-04" / "T1.nii.gz", 1)
    image(root / "DOE_JANE" / "2020-05-06" / "T1.nii.gz", 2)
    image(root / "ROE_RICHARD" / "T1.nii.gz", 3)
    mask(root / "ROE_RICHARD" / "T1_seg.nii.gz")
    image(root / "ROE_RICHARD" / "T2.nii.gz", 4)
    mask(root / "ROE_RICHARD" / "T2_mask.nii.gz", shape=(10, 9, 8))
    return root


def acdc(root: Path) -> Path:
    """A patient with one segmented frame, which is also the first of three in the cine."""
    place = root / "patient001"
    cine = image(place / "patient001_4d.nii.gz", 1, frames=3)
    save(place / "patient001_frame01.nii.gz", np.asanyarray(nib.load(cine).dataobj)[..., 0], AFFINE)
    mask(place / "patient001_frame01_gt.nii.gz")
    (place / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 3\nWeight: 95.5\n")
    return root
