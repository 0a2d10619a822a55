"""Drafts -> sources: headers are read, at most once a file and several at a time, and names and pseudonyms settled."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from preprocessing import readers
from preprocessing.geometry import same_place
from preprocessing.layouts.case import Case, stem
from preprocessing.layouts.plain import Place
from preprocessing.lists import Listed
from preprocessing.readers import Header
from preprocessing.refusal import Refusal
from preprocessing.source import Root, Source, clean_id
from preprocessing.subjects import Patients, digits
from ssl3d.data.objects import in_parallel
from ssl3d.data.subjects import hash_subject
from ssl3d.terminal import printable, progress

_AT_ONCE = 32  # headers that one thread reads in turn
_SHOW_FROM = 2000  # headers; fewer are read before a bar could be seen


@dataclass
class Draft:
    """A case as found, before any file is opened. `place`: whose it is, in a plain tree; `row`: of the list naming it.

    `dataset`: the data set's name, "" in a plain tree. `typed`: what the user typed for this very file.
    """

    case: Case
    root: Root
    layout: str
    dataset: str = ""
    place: Place | None = None
    row: Listed | None = None
    typed: str = ""

    @property
    def rank(self) -> tuple[int, int, str, str]:
        """Of two drafts of one scan the lower counts: a list says most, a plain tree least; then the wider source."""
        kind = 0 if self.row is not None else 1 if self.dataset else 2
        return kind, len(self.root.path.parts), self.root.typed, self.case.name


@dataclass
class Names:
    """What pseudonyms are made with: the key, and the tables of patients beside the data."""

    key: bytes
    patients: Patients = field(default_factory=Patients)


def distinct(drafts: Iterable[Draft]) -> list[Draft]:
    """Drafts without those of a scan that another has, whatever links lead to it. Named by one, named by all."""
    folders: dict[Path, str] = {}
    found: dict[tuple[str, ...], Draft] = {}
    for draft in sorted(drafts, key=lambda draft: draft.rank):
        place = tuple(_real(path, folders) for path in draft.case.present)
        earlier = found.setdefault(place or (str(id(draft)),), draft)
        if draft.root.named and not earlier.root.named:
            earlier.root = replace(earlier.root, named=True)
    return list(found.values())


def _real(path: Path, folders: dict[Path, str]) -> str:
    """The path without links; the folder's part is looked up once a folder."""
    parent = folders.get(path.parent)
    if parent is None:
        parent = folders[path.parent] = os.path.realpath(path.parent)
    joined = os.path.join(parent, path.name)  # noqa: PTH118 - a hundred thousand of them
    return os.path.realpath(joined) if os.path.islink(joined) else joined  # noqa: PTH114


def build(drafts: Sequence[Draft], names: Names) -> list[tuple[Draft, Source]]:
    """The sources of drafts, each with the draft it was made of.

    A guessed label whose grid is not its image's becomes a source of its own.
    """
    headers = _headers(drafts)
    settled: list[Draft] = []
    for draft in drafts:
        label = draft.case.label
        if draft.case.guessed and label is not None and not _fits(headers[draft.case.present[0]], headers[label]):
            settled.append(replace(draft, case=replace(draft.case, label=None)))
            settled.append(replace(draft, case=Case(stem(label), [label]), typed=""))
        else:
            settled.append(draft)
    return [(draft, _source(draft, headers, names)) for draft in settled]


def _headers(drafts: Sequence[Draft]) -> dict[Path, Header | Refusal]:
    """Headers of the first image of each case and of guessed labels."""
    wanted: dict[Path, None] = {}
    for draft in drafts:
        if draft.case.problem is None and draft.case.present:
            wanted[draft.case.present[0]] = None
        if draft.case.guessed and draft.case.label is not None:
            wanted[draft.case.label] = None
    paths = list(wanted)
    found: dict[Path, Header | Refusal] = {}
    parts = [paths[first : first + _AT_ONCE] for first in range(0, len(paths), _AT_ONCE)]
    with progress("reading headers", len(paths), show=len(paths) >= _SHOW_FROM) as meter:
        for part, headers in zip(parts, in_parallel(lambda part: [_header(path) for path in part], parts)):
            found.update(zip(part, headers))
            meter.update(len(found))
    return found


def _header(path: Path) -> Header | Refusal:
    try:
        return readers.header(path)
    except Refusal as refusal:
        return refusal


def _fits(image: Header | Refusal, label: Header | Refusal) -> bool:
    """Whether two files hold one volume each on one grid."""
    if isinstance(image, Refusal) or isinstance(label, Refusal) or image.frames != 1 or label.frames != 1:
        return False
    return image.shape == label.shape and same_place(image.shape, image.affine, label.affine)


def _source(draft: Draft, headers: Mapping[Path, Header | Refusal], names: Names) -> Source:
    case, row = draft.case, draft.row
    first = case.present[0]
    raw = printable(draft.place.subject if draft.place is not None else case.raw_subject or case.name)
    subject = names.patients.of(first, case.name) or case.subject or hash_subject(raw, names.key)
    if row is not None and row.subject:
        subject = raw = row.subject
    numbers = {name: value for name, value in case.targets.items() if not isinstance(value, str)}
    texts = {name: value for name, value in case.targets.items() if isinstance(value, str)}
    source = Source(
        id=clean_id(case.name),
        name=_public_name(draft, first, subject, names.key),
        shown=_shown(draft, first),
        public=first.name,
        paths=case.present,
        subject=subject,
        session=_session(draft, subject, names.key),
        folder=draft.dataset,
        case=case.name,
        raw_subject=raw,
        channels=case.channels,
        modality=case.modality,
        label=case.label,
        masks=dict(case.masks),
        classes=dict(case.classes),
        ignore=case.ignore,
        targets=numbers,
        target_classes=texts,
        named=draft.root.named,
        problem=case.problem,
    )
    _enter_header(source, headers.get(first), case)
    if row is not None:
        apply_row(source, row)
    return source


def _enter_header(source: Source, header: Header | Refusal | None, case: Case) -> None:
    """Frames and grid, and whether the channels are those that the data set names."""
    if isinstance(header, Refusal):
        source.problem = source.problem or header
    elif header is not None:
        source.header = header
        have = header.frames if len(case.images) == 1 else len(case.images)
        expected = len(case.modality or [None])
        if not case.channels:
            source.frames = header.frames
        elif case.modality is not None and have != expected:
            source.problem = source.problem or Refusal(
                "channel_mismatch", f"{case.name} has {have} channels, its data set names {expected}"
            )


def apply_row(source: Source, row: Listed) -> None:
    """What a list says of a source goes before what was found."""
    source.shown = row.shown
    source.name = row.name
    source.subject = row.subject or source.subject
    source.raw_subject = row.subject or source.raw_subject
    source.session = clean_id(row.session) if row.session else source.session
    if row.modality is not None:
        source.modality = [row.modality] * max(1, len(source.modality or []))
        if source.channels and len(source.paths) > 1:
            source.modality = [row.modality] * len(source.paths)
    if row.label is not None:
        source.label, source.masks, source.classes, source.ignore = row.label, {}, {}, None
    source.targets |= {name: value for name, value in row.targets.items() if not isinstance(value, str)}
    source.target_classes |= {name: value for name, value in row.targets.items() if isinstance(value, str)}


def _session(draft: Draft, subject: str, key: bytes) -> str:
    """The data set's session, or the folders between subject and file; folders may be dates, so they are hashed."""
    if draft.case.session:
        return draft.case.session
    if draft.place is None or draft.place.folder is None:
        return clean_id(draft.case.name)
    return f"ses-{digits(printable(f'{subject}/{draft.place.session}'), key)[:12]}"


def _shown(draft: Draft, path: Path) -> str:
    return draft.typed or draft.root.shown(path)


def _public_name(draft: Draft, path: Path, subject: str, key: bytes) -> str:
    """The file for refused.csv: folders and archives that could be called after a patient or a day as pseudonyms."""
    name = draft.root.name(path)
    if draft.place is not None and draft.root.packed:  # an archive, or the one folder in it
        own, below = name.split("/", 1)
        name = f"archive-{digits(printable(own), key)[:8]}/{below}"
    if draft.place is not None and path.parent != draft.root.path:
        own, *between, last = name.split("/")
        whose = draft.place.subject
        hashed = [subject if part == whose else digits(printable(part), key)[:8] for part in between]
        return "/".join([own, *hashed, last])
    if draft.place is None and not draft.case.subject:
        return "/".join(subject if part == draft.case.raw_subject else part for part in name.split("/"))
    return name
