"""BTCV (Synapse's "Beyond the cranial vault", abdomen): img/img0001.nii.gz and label/label0001.nii.gz.

Swin UNETR keeps them as imagesTr and labelsTr under the same file names. 13 organs; 30 scans of Training are labelled.
"""

from __future__ import annotations

import re
from pathlib import Path

from preprocessing.layouts.case import Case, Found, Listing, stem
from preprocessing.tree import Folder

NAME = "BTCV"
ORDER = 15  # before MSD: a description may lie beside it, but labels are not called as their images are
_FOLDERS = {"img": "label", "imagesTr": "labelsTr", "imagesTs": "labelsTs"}  # images: their labels
_IMAGE = re.compile(r"^img(?P<number>\d{4})$")
_ORGANS = (
    "background", "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal vein and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip


def matches(folder: Folder) -> bool:
    """Image folders in which every volume is called imgNNNN."""
    found = _images(folder)
    return bool(found) and all(_IMAGE.match(stem(name)) for place in found for name in place.volumes)


def _images(folder: Folder) -> list[Folder]:
    return [folder.folders[name] for name in _FOLDERS if name in folder.folders and folder.folders[name].volumes]


def read(folder: Folder) -> Found:
    """A case is an image; its label has the same number."""
    found = Found()
    for images in _images(folder):
        beside = folder.folders.get(_FOLDERS[images.name])
        labels = {} if beside is None else {stem(name): beside.path / name for name in beside.volumes}
        for file in images.volumes:
            name = stem(file)
            found.cases.append(
                Case(
                    name=name,
                    images=[images.path / file],
                    label=labels.get(name.replace("img", "label")),
                    subject=name,
                    raw_subject=name,
                    session=name,
                    modality=["ct"],
                    classes=dict(enumerate(_ORGANS)),
                )
            )
    return found


def above(path: Path, listing: Listing) -> Path | None:
    """Of an image folder, or of a file in one."""
    for folder in (path, path.parent):
        if folder.name in _FOLDERS and matches(listing(folder.parent)):
            return folder.parent
    return None
