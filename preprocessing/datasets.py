"""Research layouts with a dataset.json: Medical Segmentation Decathlon, and nnU-Net raw (CASE_0000 channels)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocessing.readers import header_file, split_extension

DATASET_FILE = "dataset.json"
IMAGE_FOLDERS = ("imagesTr", "imagesVa", "imagesVal", "imagesTs")
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass
class Case:
    """One case: its channels' files (None where one is missing), and its label's file."""

    name: str
    images: list[Path | None]
    label: Path | None = None


@dataclass
class Dataset:
    """A data set: names of channels, classes {value: name}, the ignore value, and the cases on the disk.

    `absent`: files that dataset.json lists and that are not there.
    """

    root: Path
    channels: list[str]
    classes: dict[int, str]
    ignore: int | None
    cases: list[Case] = field(default_factory=list)
    absent: list[Path] = field(default_factory=list)


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a dataset.json and images in the layout's folders."""
    return (folder / DATASET_FILE).is_file() and any((folder / name).is_dir() for name in IMAGE_FOLDERS)


def read_description(file: Path) -> dict[str, Any]:
    """A dataset.json. Raises ValueError naming it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is no JSON: repair it, or move it away to convert the files as plain volumes"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold an object with 'labels' and 'modality' or 'channel_names'")
    return content


def channel_names(description: Mapping[str, Any]) -> list[str]:
    """Names of the channels in order, from 'channel_names' (nnU-Net) or 'modality' (MSD); [] when unstated."""
    stated = description.get("channel_names") or description.get("modality") or {}
    if isinstance(stated, Mapping):
        return [str(stated[key]) for key in sorted(stated, key=lambda key: int(key))]
    return [str(stated)] if isinstance(stated, str) else [str(name) for name in stated]


def class_names(description: Mapping[str, Any]) -> tuple[dict[int, str], int | None]:
    """({value: name}, ignore value) from 'labels': {"0": "background"} (MSD), {"background": 0} or regions (nnU-Net).

    A value that lies in several regions takes the name of the smallest.
    """
    stated = description.get("labels") or {}
    if not isinstance(stated, Mapping):
        return {}, None
    if all(str(key).lstrip("-").isdigit() for key in stated):
        return {int(key): str(name) for key, name in stated.items()}, None
    ignore = stated.get("ignore")
    classes: dict[int, str] = {}
    regions = {name: value if isinstance(value, list) else [value] for name, value in stated.items()}
    for name, values in sorted(regions.items(), key=lambda item: -len(item[1])):
        for value in values:
            classes[int(value)] = str(name)
    return classes, None if ignore is None else int(ignore)


def read_dataset(root: Path, folders: tuple[str, ...] = IMAGE_FOLDERS) -> Dataset:
    """The cases of a data set's image folders, found on the disk; dataset.json names channels and classes."""
    description = read_description(root / DATASET_FILE)
    classes, ignore = class_names(description)
    dataset = Dataset(root, channel_names(description), classes, ignore)
    seen: set[Path] = set()
    for folder in folders:
        images = _volumes(root / folder)
        seen.update(images)
        dataset.cases += group_images(images, _labels(root, folder), len(dataset.channels))
    names = {case.name for case in dataset.cases}
    for entry in [*description.get("training", []), *description.get("test", [])]:
        listed = entry.get("image") if isinstance(entry, Mapping) else entry
        if isinstance(listed, str) and Path(listed).parent.name in folders:
            path = root / Path(listed).parent.name / Path(listed).name
            if path not in seen and not path.exists() and split_extension(path.name)[0] not in names:
                dataset.absent.append(path)
    return dataset


def is_nnunet(root: Path) -> bool:
    """Whether the images of a data set with a dataset.json carry the numbers of their channels."""
    channels = len(channel_names(read_description(root / DATASET_FILE)))
    return any(_numbered(_volumes(root / folder), _labels(root, folder), channels) for folder in IMAGE_FOLDERS)


def group_images(images: list[Path], labels: Mapping[str, Path], channels: int) -> list[Case]:
    """Image files as cases: numbered channels (CASE_0000) together, any other file a case. `labels` by case.

    `channels`: how many a case has, 0 where nothing says so.
    """
    if _numbered(images, labels, channels):
        return _numbered_cases(images, labels, channels)
    names = [split_extension(image.name)[0] for image in images]
    return [Case(name, [image], labels.get(name)) for name, image in zip(names, images)]


def _labels(root: Path, images: str) -> dict[str, Path]:
    """Label files that belong to an image folder, by name without extension."""
    return {split_extension(p.name)[0]: p for p in _volumes(root / images.replace("images", "labels"))}


def _volumes(folder: Path) -> list[Path]:
    """Volume files of a folder, sorted; resource forks of macOS archives (._x) are none."""
    if not folder.is_dir():
        return []
    named = (p for p in folder.iterdir() if not p.name.startswith(".") and split_extension(p.name)[1])
    return sorted(p for p in named if header_file(p) == p)  # an .img comes with its .hdr


def _numbered(images: list[Path], labels: Mapping[str, Path], channels: int) -> bool:
    """Whether every image's name ends in a channel number, and none of them is what a label is called."""
    stems = [split_extension(p.name)[0] for p in images]
    matches = [_CHANNEL.match(stem) for stem in stems]
    if not images or not all(matches) or any(stem in labels for stem in stems):
        return False
    numbers = {int(m["channel"]) for m in matches if m}
    return any(m["case"] in labels for m in matches if m) or max(numbers) < max(channels, 1)


def _numbered_cases(images: list[Path], labels: Mapping[str, Path], channels: int) -> list[Case]:
    grouped: dict[str, dict[int, Path]] = {}
    for image in images:
        match = _CHANNEL.match(split_extension(image.name)[0])
        assert match is not None
        grouped.setdefault(match["case"], {})[int(match["channel"])] = image
    count = max(channels, 1 + max(max(files) for files in grouped.values())) if grouped else channels
    return [
        Case(name, [files.get(number) for number in range(count)], labels.get(name)) for name, files in grouped.items()
    ]
