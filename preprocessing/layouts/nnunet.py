"""nnU-Net raw: dataset.json, and images whose names end in the channel's number (CASE_0000.nii.gz)."""

from __future__ import annotations

from pathlib import Path

from preprocessing import datasets
from preprocessing.layouts import decathlon
from preprocessing.layouts.case import Found, Listing
from preprocessing.tree import Folder

NAME = "nnU-Net"
ORDER = 10


def matches(folder: Folder) -> bool:
    """A dataset.json beside image folders, every image with the number of its channel."""
    return decathlon.matches(folder) and datasets.is_nnunet(folder.path)


def read(folder: Folder) -> Found:
    """The files of a case are its channels."""
    return decathlon.read(folder)


def above(path: Path, listing: Listing) -> Path | None:
    """Of an image folder, or of a file in one."""
    root = decathlon.above(path, listing)
    return root if root is not None and datasets.is_nnunet(root) else None
