"""TotalSegmentator: a folder a subject with ct.nii.gz or mri.nii.gz, and segmentations/CLASS.nii.gz, merged."""

from __future__ import annotations

import re
from pathlib import Path

from preprocessing.layouts.case import Case, Found, Listing, stem
from preprocessing.tree import Folder

NAME = "TotalSegmentator"
ORDER = 50
_IMAGES = {"ct": "ct", "mri": "mr"}
_MASKS = "segmentations"
_PSEUDONYM = re.compile(r"^s\d{4}$")  # the data set's own names; other folders may be called after patients


def matches(folder: Folder) -> bool:
    """A folder of such cases, or one of them."""
    return any(_is_case(place) for place in (folder, *folder.folders.values()))


def _is_case(folder: Folder) -> bool:
    return _MASKS in folder.folders and bool(_images(folder))


def _images(folder: Folder) -> list[str]:
    return [name for name in folder.volumes if stem(name) in _IMAGES]


def read(folder: Folder) -> Found:
    """A case is an image; the classes of a label are the names of the masks, numbered when all sources are known."""
    found = Found()
    for place in (folder, *folder.folders.values()):
        masks = place.folders.get(_MASKS)
        images = _images(place)
        known = bool(_PSEUDONYM.match(place.name))
        for name in images:
            found.cases.append(
                Case(
                    name=stem(name) if not known else place.name if len(images) == 1 else f"{place.name}_{stem(name)}",
                    images=[place.path / name],
                    masks={} if masks is None else {stem(mask): masks.path / mask for mask in masks.volumes},
                    subject=place.name if known else "",
                    raw_subject=place.name,
                    session=place.name if known else "",
                    modality=[_IMAGES[stem(name)]],
                )
            )
    return found


def above(path: Path, listing: Listing) -> Path | None:
    """Of a case's folder, or of its image."""
    for folder in (path, path.parent):
        if folder.name and folder.is_dir() and _is_case(listing(folder)):
            return folder.parent
    return None
