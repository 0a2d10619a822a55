"""FLARE: imagesTr and labelsTr (or images and labels) without a dataset.json, images often CASE_0000.nii.gz."""

from __future__ import annotations

from pathlib import Path

from preprocessing import datasets
from preprocessing.layouts.case import Case, Found, Listing, paths, stem
from preprocessing.layouts.decathlon import missing_channel
from preprocessing.tree import Folder

NAME = "FLARE"
ORDER = 60
_PLAIN = "images"  # a usual name: it makes a data set only beside a folder of labels
_FLARE22 = "FLARE22_"  # its cases; other years have other organs, and state them nowhere
_ORGANS = (
    "background", "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland",
    "left adrenal gland", "gallbladder", "oesophagus", "stomach", "duodenum", "left kidney",
)  # fmt: skip


def matches(folder: Folder) -> bool:
    """Image folders that hold volumes, and no dataset.json."""
    return datasets.DATASET_FILE not in folder.files and bool(_image_folders(folder))


def _image_folders(folder: Folder) -> list[Folder]:
    wanted = [*datasets.IMAGE_FOLDERS, *([_PLAIN] if "labels" in folder.folders else [])]
    return [folder.folders[name] for name in wanted if name in folder.folders and folder.folders[name].volumes]


def read(folder: Folder) -> Found:
    """A case is an image, or the numbered channels of one; its label has the same name, or the case's."""
    found = Found()
    for images in _image_folders(folder):
        beside = folder.folders.get(images.name.replace("images", "labels"))
        labels = {} if beside is None else {stem(path): path for path in paths(beside, beside.volumes)}
        for case in datasets.group_images(paths(images, images.volumes), labels, channels=0):
            found.cases.append(
                Case(
                    name=case.name,
                    images=case.images,
                    label=case.label,
                    channels=len(case.images) > 1,
                    subject=case.name,
                    raw_subject=case.name,
                    classes=dict(enumerate(_ORGANS)) if case.name.startswith(_FLARE22) else {},
                    problem=missing_channel(case),
                )
            )
    return found


def above(path: Path, listing: Listing) -> Path | None:
    """Of an image folder, or of a file in one."""
    for folder in (path, path.parent):
        if folder.name in (*datasets.IMAGE_FOLDERS, _PLAIN) and matches(listing(folder.parent)):
            return folder.parent
    return None
