"""ACDC: a folder a patient with patientNNN_frameMM.nii.gz, its segmentation _gt, the cine _4d and Info.cfg.

Bernard et al., Deep learning techniques for automatic MRI cardiac multi-structures segmentation and diagnosis (IEEE TMI
2018): cine MR of 150 patients, end-diastole and end-systole segmented; training/ holds patients 1 to 100, testing/ 101
to 150.
"""

from __future__ import annotations

import re
from pathlib import Path

from preprocessing.layouts.case import Case, Found, Listing, stem
from preprocessing.tree import Folder

NAME = "ACDC"
ORDER = 44
_PATIENT = re.compile(r"^patient\d{3}$")
_FRAME = re.compile(r"^patient\d{3}_frame\d{2}$")
_CINE, _REFERENCE, _INFO = "_4d", "_gt", "Info.cfg"
_CLASSES = {0: "background", 1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
_TARGETS = ("Group", "Height", "Weight")  # of Info.cfg; the others are numbers of frames


def matches(folder: Folder) -> bool:
    """A folder of patients, or one of them."""
    return any(_is_patient(place) for place in (folder, *folder.folders.values()))


def _is_patient(folder: Folder) -> bool:
    return bool(_PATIENT.match(folder.name)) and any(_FRAME.match(stem(name)) for name in folder.volumes)


def read(folder: Folder) -> Found:
    """The segmented frames, and the cine: frames of it that equal a segmented one are left out as duplicates."""
    found = Found()
    for place in (folder, *folder.folders.values()):
        if not _is_patient(place):
            continue
        files = {stem(name): place.path / name for name in place.volumes}
        targets = _targets(place)
        for name, image in files.items():
            if _FRAME.match(name) or name == place.name + _CINE:
                label = files.get(name + _REFERENCE)
                found.cases.append(_case(place.name, name, image, label, targets))
    return found


def _case(patient: str, name: str, image: Path, label: Path | None, targets: dict[str, float | str]) -> Case:
    return Case(
        name=name,
        images=[image],
        label=label,
        subject=patient,
        raw_subject=patient,
        session=patient,
        modality=["mr"],
        classes=dict(_CLASSES),
        targets=dict(targets),
    )


def _targets(place: Folder) -> dict[str, float | str]:
    """The patient's group (a diagnosis), height in cm and weight in kg."""
    if _INFO not in place.files:
        return {}
    found: dict[str, float | str] = {}
    for line in (place.path / _INFO).read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in _TARGETS and value:
            found[key.lower()] = value if key == "Group" else _number(place.path / _INFO, key, value)
    return found


def _number(file: Path, key: str, value: str) -> float:
    """Raises ValueError naming the file."""
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{file} says {key}: {value}, which is no number: correct it, or move the file away") from None


def above(path: Path, listing: Listing) -> Path | None:
    """Of a patient's folder, or of a file in one."""
    for folder in (path, path.parent):
        if _PATIENT.match(folder.name) and folder.is_dir() and _is_patient(listing(folder)):
            return folder.parent
    return None
