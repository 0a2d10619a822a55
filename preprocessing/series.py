"""DICOM files -> sources, grouped by what they state and never by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from preprocessing.readers import dicom
from preprocessing.refusal import Refusal
from preprocessing.source import Root, Source, clean_id
from preprocessing.subjects import Patients, digits
from ssl3d.data.subjects import hash_subject


def group(files: Mapping[Path, Root], key: bytes, patients: Patients) -> list[Source]:
    """DICOM files, each with the source it was found in, as sources; an instance that is met twice counts once.

    All files of a run come together: a series may lie in several folders, or be named file by file.
    """
    groups: dict[str, dict[str, tuple[Path, dicom.Identity]]] = {}
    found = []
    for file, root in files.items():
        try:
            identity = dicom.identify(file)
        except Refusal as refusal:
            found.append(_refused(file, root, refusal))
            continue
        if identity is not None:
            groups.setdefault(identity.series, {}).setdefault(identity.instance, (file, identity))
    shared = [next(iter(members.values()))[0].parent for members in groups.values()]
    for instances in groups.values():
        members = sorted(instances.values(), key=lambda item: item[0])
        first, identity = members[0]
        raw = identity.patient or identity.study
        subject = patients.of(first, first.parent.name) or hash_subject(raw, key)
        series = digits(identity.series, key)
        root = files[first]
        place = first if root.named or shared.count(first.parent) > 1 else first.parent
        scrub = [identity.patient, *re.split(r"[\^\s,=]+", identity.name)]
        found.append(
            Source(
                id=clean_id(f"{subject}_{identity.modality}_{series[:8]}"),
                name=_scrubbed(root.name(place), scrub, subject),
                shown=root.shown(place),
                public=f"dicom-{series}",
                paths=[path for path, _ in members],
                subject=subject,
                session=f"ses-{digits(identity.study, key)[:12]}",
                folder="",
                raw_subject=identity.patient,
                series=True,
                named=root.named,
            )
        )
    return found


def _refused(path: Path, root: Root, refusal: Refusal) -> Source:
    named = root.named
    return Source("", root.name(path), root.shown(path), path.name, [path], "", "", "", named=named, problem=refusal)


def _scrubbed(name: str, identifiers: Sequence[str], subject: str) -> str:
    """`name` whose parts that hold an identifier of the patient are replaced by the pseudonym."""
    known = [word.lower() for word in identifiers if len(word) >= 3]
    parts = [subject if any(word in part.lower() for word in known) else part for part in name.split("/")]
    return "/".join(parts)
