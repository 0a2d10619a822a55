"""AMOS: the MSD's folders, with CT and MR in one data set; amos_NNNN below 500 is a CT, from 500 on an MR.

Ji et al., AMOS: a large-scale abdominal multi-organ benchmark (NeurIPS 2022), and the data set's own readme: its
dataset.json states one modality for all.
"""

from __future__ import annotations

import re
from pathlib import Path

from preprocessing import datasets
from preprocessing.layouts import decathlon
from preprocessing.layouts.case import Found, Listing, stem
from preprocessing.tree import Folder

NAME = "AMOS"
ORDER = 16
_CASE = re.compile(r"^amos_(?P<number>\d{4})$")
_FIRST_MR = 500


def matches(folder: Folder) -> bool:
    """An MSD data set in which every image is called amos_NNNN."""
    if not decathlon.matches(folder):
        return False
    places = [folder.folders[name] for name in datasets.IMAGE_FOLDERS if name in folder.folders]
    names = [stem(name) for place in places for name in place.volumes]
    return bool(names) and all(map(_CASE.match, names))


def read(folder: Folder) -> Found:
    """As MSD's, each case with the modality that its number says."""
    found = decathlon.read(folder)
    for case in found.cases:
        match = _CASE.match(case.name)
        assert match is not None
        case.modality = ["mr" if int(match["number"]) >= _FIRST_MR else "ct"]
    return found


def above(path: Path, listing: Listing) -> Path | None:
    """Of an image folder, or of a file in one."""
    root = decathlon.above(path, listing)
    return root if root is not None and matches(listing(root)) else None
