"""Medical Segmentation Decathlon: dataset.json, imagesTr, imagesTs, labelsTr; the frames of a 4D image are channels."""

from __future__ import annotations

from pathlib import Path

from preprocessing import datasets
from preprocessing.layouts.case import Case, Found, Listing
from preprocessing.modality import from_name
from preprocessing.refusal import Refusal
from preprocessing.tree import Folder

NAME = "MSD"
ORDER = 20


def matches(folder: Folder) -> bool:
    """A dataset.json beside image folders."""
    return datasets.DATASET_FILE in folder.files and any(name in folder.folders for name in datasets.IMAGE_FOLDERS)


def read(folder: Folder) -> Found:
    """The cases on the disk; dataset.json names channels and classes, and files that should be there."""
    dataset = datasets.read_dataset(folder.path)
    modality: list[str | None] = [from_name(name) for name in dataset.channels]
    found = Found()
    for case in dataset.cases:
        several = len(dataset.channels) > 1 or len(case.images) > 1
        found.cases.append(
            Case(
                name=case.name,
                images=case.images,
                label=case.label,
                channels=several,
                subject=case.name,
                raw_subject=case.name,
                modality=modality or None,
                classes=dict(dataset.classes),
                ignore=dataset.ignore,
                problem=missing_channel(case),
            )
        )
    for path in dataset.absent:
        found.refused.append((path, Refusal("missing_file", f"dataset.json lists {path.name}, which is not there")))
    return found


def missing_channel(case: datasets.Case) -> Refusal | None:
    """Why the channels of a case are incomplete, if they are."""
    missing = [number for number, path in enumerate(case.images) if path is None]
    if not missing:
        return None
    return Refusal("missing_channel", f"channel {missing[0]} of {case.name} (_{missing[0]:04d}) is missing")


def above(path: Path, listing: Listing) -> Path | None:
    """Of an image folder, or of a file in one."""
    for folder in (path, path.parent):
        if folder.name in datasets.IMAGE_FOLDERS and matches(listing(folder.parent)):
            return folder.parent
    return None
