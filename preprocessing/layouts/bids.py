"""BIDS: sub-*/[ses-*/]anat|func|dwi|perf|pet|ct/, subjects and targets from participants.tsv.

Frames of a 4D file are volumes of one session. derivatives, sourcedata and code are left out unless they are named.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from preprocessing.layouts.case import Case, Found, Listing, stem
from preprocessing.refusal import Refusal
from preprocessing.tables import Table, read_table
from preprocessing.tree import Folder

NAME = "BIDS"
ORDER = 30
PARTICIPANTS_FILE = "participants.tsv"
_ID = "participant_id"
_MODALITIES = {"anat": "mr", "func": "mr", "dwi": "mr", "perf": "mr", "pet": "pet", "ct": "ct"}
_LABEL_SUFFIXES = frozenset({"mask", "defacemask", "dseg", "probseg", "label", "roi"})
_LEFT = ("derivatives", "sourcedata", "code")


def matches(folder: Folder) -> bool:
    """Folders called sub-* that hold folders of data types, or of sessions that do."""
    return any(_is_subject(child) for child in folder.folders.values())


def _is_subject(folder: Folder) -> bool:
    if not folder.name.startswith("sub-"):
        return False
    sessions = [child for name, child in folder.folders.items() if name.startswith("ses-")]
    return any(name in _MODALITIES for place in (folder, *sessions) for name in place.folders)


def read(folder: Folder) -> Found:
    """A case is a file; the suffix of its name says whether it is a scan. Raises ValueError on a bad participants.tsv.

    Field maps and other data types are no scans to learn from and are refused, as are masks.
    """
    found = Found(left=[folder.path / name for name in _LEFT if name in folder.folders])
    participants = _participants(folder)
    found.notes += [] if participants is None else participants.notes
    for name, subject in folder.folders.items():
        if name.startswith("sub-"):
            for place, file in _volumes(subject):
                _add(found, file, place, name, participants)
    return found


def _volumes(subject: Folder) -> Iterator[tuple[tuple[str, ...], Path]]:
    """((folders below the subject), file) of its volumes."""
    for folder in subject.walk():
        for name in folder.volumes:
            yield folder.path.relative_to(subject.path).parts, folder.path / name


def _add(found: Found, file: Path, place: tuple[str, ...], subject: str, participants: Table | None) -> None:
    """Enter one file as a case or as refused."""
    session = next((part for part in place if part.startswith("ses-")), "")
    kind = next((part for part in place if not part.startswith("ses-")), "anat")
    name = stem(file)
    suffix = name.rpartition("_")[2]
    if suffix in _LABEL_SUFFIXES:
        found.refused.append((file, Refusal("looks_like_labels", f"BIDS names it a segmentation (_{suffix})")))
    elif kind not in _MODALITIES or "_part-phase" in name:
        what = f"BIDS keeps it in {kind}" if kind not in _MODALITIES else "it holds phases"
        found.refused.append((file, Refusal("not_a_scan", f"{what}, which shows no anatomy to learn from")))
    else:
        modality = "ct" if suffix == "ct" else _MODALITIES[kind]
        row = None if participants is None else participants.row(subject, subject.removeprefix("sub-"))
        found.cases.append(
            Case(
                name=name,
                images=[file],
                subject=subject,
                raw_subject=subject.removeprefix("sub-"),
                session=session or subject,
                modality=[modality],
                targets={} if row is None else row.targets,
            )
        )


def _participants(folder: Folder) -> Table | None:
    """The table beside the subjects, by participant_id."""
    if PARTICIPANTS_FILE not in folder.files:
        return None
    file = folder.path / PARTICIPANTS_FILE
    table = read_table(file, (_ID,))
    if _ID not in table.columns:
        raise ValueError(f"{file} has no column '{_ID}': add it, or move the file away")
    return table.by(_ID)


def above(path: Path, listing: Listing) -> Path | None:
    """Of a subject's folder, and of what lies in one."""
    parts = path.absolute().parts
    for number in range(len(parts) - 1, max(0, len(parts) - 5), -1):
        if parts[number].startswith("sub-"):
            subject = Path(*parts[: number + 1])
            if subject.is_dir() and _is_subject(listing(subject)):
                return path.parents[len(parts) - number - 1] if len(parts) - number <= len(path.parents) else None
    return None
