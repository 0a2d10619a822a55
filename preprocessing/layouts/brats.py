"""BraTS: a folder a case, four contrasts of one name (_t1, _t1ce, _t2, _flair or -t1n, -t1c, -t2w, -t2f), and _seg."""

from __future__ import annotations

import re
from pathlib import Path

from preprocessing.layouts.case import Case, Found, Listing, stem
from preprocessing.refusal import Refusal
from preprocessing.tree import Folder

NAME = "BraTS"
ORDER = 40
_FAMILIES = {"_": ("t1", "t1ce", "t2", "flair"), "-": ("t1n", "t1c", "t2w", "t2f")}
_SEGMENTATION = "seg"
_FILE = re.compile(r"^(?P<case>.+)(?P<mark>[_-])(?P<contrast>[A-Za-z0-9]+)$")
_PSEUDONYM = re.compile(r"^brats", re.IGNORECASE)  # the challenge's own names; others may be called after patients
_VISIT = re.compile(r"^(?P<subject>BraTS-[A-Za-z]+-\d+)-(?P<visit>\d+)$")
_CLASSES = {
    "_": {0: "background", 1: "necrotic tumour core", 2: "oedema", 4: "enhancing tumour"},
    "-": {0: "background", 1: "necrotic tumour core", 2: "oedema", 3: "enhancing tumour"},
}


def matches(folder: Folder) -> bool:
    """A folder of cases of which one is whole, or such a case: half of the contrasts alone are a plain tree's."""
    return any(None not in contrasts for place in (folder, *folder.folders.values()) for *_, contrasts in _cases(place))


def _cases(folder: Folder) -> list[tuple[str, str, list[str | None]]]:
    """(case, mark before the contrast, file of each contrast or None) of what a case's folder holds."""
    grouped: dict[tuple[str, str], dict[str, str]] = {}
    for name in folder.volumes:
        match = _FILE.match(stem(name))
        if match and match["contrast"].lower() in _FAMILIES[match["mark"]]:
            grouped.setdefault((match["case"], match["mark"]), {})[match["contrast"].lower()] = name
    return [(case, mark, [files.get(c) for c in _FAMILIES[mark]]) for (case, mark), files in grouped.items()]


def read(folder: Folder) -> Found:
    """The contrasts of a case are its channels, in the order above; a missing one refuses the case by its name."""
    found = Found()
    for place in (folder, *folder.folders.values()):
        labels = {stem(name): name for name in place.volumes}
        for name, mark, files in _cases(place):
            label = labels.get(f"{name}{mark}{_SEGMENTATION}")
            missing = [contrast for contrast, file in zip(_FAMILIES[mark], files) if file is None]
            visit = _VISIT.match(name)
            known = bool(_PSEUDONYM.match(name))
            found.cases.append(
                Case(
                    name=name,
                    images=[None if file is None else place.path / file for file in files],
                    label=None if label is None else place.path / label,
                    channels=True,
                    subject="" if not known else visit["subject"] if visit else name,
                    raw_subject=name if known else place.name,
                    session=name if known else "",
                    modality=["mr"] * len(files),
                    classes=dict(_CLASSES[mark]),
                    problem=Refusal("missing_contrast", f"{', '.join(missing)} of the four contrasts is missing")
                    if missing
                    else None,
                )
            )
    return found


def above(path: Path, listing: Listing) -> Path | None:
    """Of a file of a case; a case's folder is a data set itself."""
    match = _FILE.match(stem(path))
    if not match or match["contrast"].lower() not in (*_FAMILIES[match["mark"]], _SEGMENTATION):
        return None
    return path.parent if not path.is_dir() and matches(listing(path.parent)) else None
