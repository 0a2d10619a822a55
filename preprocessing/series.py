"""DICOM files -> sources, grouped by what they state and never by their names.

Nothing that identifies leaves this module but in memory: sources are called by hashes under the user's key. Only
`shown`, which is printed and never stored, holds a path: as the user typed it, and below that without what names
somebody (words of the header, dates, UIDs).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.geometry import MIN_SLICES
from preprocessing.headers import describe_all
from preprocessing.readers import dicom_header
from preprocessing.readers.dicom_header import Object, Picture, plain
from preprocessing.refusal import Refusal
from preprocessing.source import Root, Source, clean_id
from preprocessing.stacks import Stack, split
from preprocessing.subjects import Patients, digits
from preprocessing.summary import count
from ssl3d.data.subjects import hash_subject

_DATE = re.compile(r"(?<!\d)(19|20)\d\d[-_. ]?[01]\d[-_. ]?[0-3]\d|(?<!\d)[0-3]\d[-_. ][01]\d[-_. ](19|20)\d\d")
_FOLDER = re.compile(r"f\d+")  # of a suffix: only the folder tells the pictures apart
_UID = re.compile(r"\d+(\.\d+){3,}")
FEWEST_DERIVED = 8  # slices; fewer reformatted or computed pictures are single images, not a volume
_MOST_PLANE_SLICES = 16  # in each of three planes: fewer are a localiser
_MOST_SCOUT_SLICES = 32  # a series called scout or survey that has more is a scan


@dataclass
class _Series:
    """One series of one patient: its objects, and those that repeat an object found before, here or in another series.

    Where a scan lies twice, once under a pseudonym, the second series is copies and nothing else.
    """

    objects: list[Object] = field(default_factory=list)
    copies: list[Object] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)


def group(files: Mapping[Path, Root], key: bytes, patients: Patients) -> list[Source]:
    """DICOM files, each with the source it was found in, as sources: one a volume, in a stable order.

    All files of a run come together: a series may lie in several folders, or be named file by file. Of files of a
    series that hold the same instance (by its UID and its place) the largest counts, as another may be cut short, and
    the first of equals; of files in two series the first. Objects without pixels are passed over.
    """
    grouping = _Grouping(files, key, patients)
    images: dict[tuple[str, str], _Series] = {}
    labels: list[Object] = []
    unread: list[tuple[Path, Refusal]] = []
    seen: dict[tuple[object, ...], tuple[_Series, int]] = {}  # where among its objects
    for file, found in zip(files, describe_all(list(files))):
        if isinstance(found, Refusal):
            unread.append((file, found))
            continue
        for folder in (file.parent, file.parent.parent):
            grouping.words.setdefault(folder, set()).update(found.words)
        if found.kind == dicom_header.IMAGE:
            series = images.setdefault((found.patient, found.series), _Series())
            own, at = seen.setdefault(_identity(found), (series, len(series.objects)))
            if at == len(own.objects):
                own.objects.append(found)
            elif own is series and _whole(found) > _whole(own.objects[at]):
                series.copies.append(own.objects[at])
                own.objects[at] = found
            else:
                series.copies.append(found)
        elif found.kind == dicom_header.CONTOURS:
            unread.append((file, Refusal("contours")))
        elif found.kind == dicom_header.SEGMENTATION:
            labels.append(found)
    for file, refusal in unread:
        grouping.refuse(file, refusal)
    inside = Counter(parent for series in images.values() for parent in {item.file.parent for item in series.objects})
    grouping.crowded = {parent for parent, count in inside.items() if count > 1}
    for series in images.values():
        grouping.add(series)
    grouping.attach(labels, images)
    return grouping.sources


def _identity(found: Object) -> tuple[object, ...]:
    """What two files share when one is a copy of the other, compressed differently or not."""
    first = found.pictures[0]
    return (found.instance or str(found.file), first.position, first.axes, first.shape, len(found.pictures))


def _whole(found: Object) -> tuple[bool, int]:
    """The greater, the more of a picture a copy of it holds."""
    return found.problem is None, found.file.stat().st_size


@dataclass
class _Grouping:
    """Makes sources of series. `crowded`: folders that hold several series, whose files are shown one by one.

    `words`: what names somebody, by folder: for files there that say nothing of their own.
    """

    files: Mapping[Path, Root]
    key: bytes
    patients: Patients
    sources: list[Source] = field(default_factory=list)
    crowded: set[Path] = field(default_factory=set)
    words: dict[Path, set[str]] = field(default_factory=dict)

    def shown(self, place: Path, root: Root, words: Iterable[str]) -> str:
        """`place` for the screen: what the user typed, and below it names without what identifies."""
        if place == root.path or not place.is_relative_to(root.path):
            return root.shown(place)
        parts = place.relative_to(root.path).parts
        kept = [f"[{digits(part, self.key)[:8]}]" if identifies(part, words) else part for part in parts]
        return root.shown(root.path.joinpath(*kept))

    def refuse(self, file: Path, refusal: Refusal) -> None:
        """A file that belongs to no volume."""
        root = self.files[file]
        name = f"dicom-{digits(root.name(file), self.key)}"
        near = self.words.get(file.parent) or self.words.get(file.parent.parent) or set()
        shown = self.shown(file, root, near)
        self.sources.append(Source("", name, shown, name, [file], "", "", "", named=root.named, problem=refusal))

    def add(self, series: _Series) -> None:
        """The volumes of a series, and what of it is refused."""
        scans = [found for found in series.objects if found.problem is None]
        reasons: dict[str, list[Object]] = {}
        for found in series.objects:
            if found.problem is not None:
                reasons.setdefault(found.problem.reason, []).append(found)
        for reason, members in sorted(reasons.items()):
            source = self._source(members, [found.file for found in members], f"x-{reason}")
            source.problem = members[0].problem
            self.sources.append(source)
        if scans:
            stacks = split([picture for found in scans for picture in found.pictures])
            series.sources = self._volumes(scans, stacks)
            self.sources += series.sources
        if series.copies:
            copied = self._source(series.copies, [found.file for found in series.copies], "x-copies")
            whose = "the same series" if series.objects else "another patient or series"
            copied.problem = Refusal("duplicate", f"pictures of {whose} that were found before, by their SOP "
                                     f"instance: {count(len(series.copies), 'file')}")  # fmt: skip
            self.sources.append(copied)

    def _volumes(self, scans: list[Object], stacks: list[Stack]) -> list[Source]:
        """One source a stack; a series that falls apart into directions too thin for any volume is one refusal."""
        sizes = [len(stack.pictures) for stack in stacks]
        called_scout = any(found.localiser_by_name for found in scans)
        thin = [stack for stack in stacks if not stack.pictures[0].mosaic]
        if called_scout and max(sizes) < _MOST_SCOUT_SLICES and thin == stacks:
            return [self._refused(scans, Refusal("localiser"))]
        if len(stacks) >= 3 and max(sizes) < _MOST_PLANE_SLICES and thin == stacks and _three_planes(stacks):
            return [self._refused(scans, Refusal("localiser", "few slices in each of three planes: a localiser"))]
        if len(stacks) > 1 and max(sizes) < MIN_SLICES and thin == stacks:
            counts = ", ".join(str(size) for size in sizes)
            detail = f"the series has slices in {len(stacks)} directions or sizes ({counts}): none makes a volume"
            return [self._refused(scans, Refusal("mixed_orientation", detail))]
        out = []
        for stack in stacks:
            source = self._source(scans, sorted({picture.file for picture in stack.pictures}), stack.suffix)
            source.selection = _selection(source.paths, stack.pictures, scans)
            derived = any("DERIVED" in picture.image_type[:1] for picture in stack.pictures)
            if derived and len(stack.pictures) < FEWEST_DERIVED and stack in thin:
                source.problem = Refusal("derived", f"{len(stack.pictures)} derived slices are no scan")
            out.append(source)
        return out

    def _refused(self, scans: list[Object], refusal: Refusal) -> Source:
        source = self._source(scans, [found.file for found in scans], "")
        source.problem = refusal
        return source

    def _source(self, objects: Sequence[Object], paths: list[Path], suffix: str) -> Source:
        """A source of the given files of a series."""
        found, paths = objects[0], sorted(paths)
        first = paths[0]
        root = self.files[first]
        subject = self.patients.of(first, first.parent.name) or hash_subject(found.patient or found.study, self.key)
        copy = "".join(part for part in suffix.split("_") if _FOLDER.fullmatch(part))  # copies are series of their own
        series = digits("\n".join(part for part in (found.patient, found.series, copy) if part), self.key)
        name = f"dicom-{series}{'-' if suffix else ''}{suffix}"
        place = first if root.named or first.parent in self.crowded else first.parent
        shown = self.shown(place, root, found.words)
        return Source(
            id=clean_id(f"{subject}_{found.modality}_{series[:8]}{'_' if suffix else ''}{suffix}"),
            name=name,
            shown=shown + (f" ({suffix})" if suffix and not suffix.startswith("x-") else ""),
            public=name,
            paths=paths,
            subject=subject,
            session=f"ses-{digits(found.study, self.key)[:12]}",
            folder="",
            raw_subject=found.patient,
            series=True,
            named=any(self.files[path].named for path in paths),
        )

    def attach(self, labels: Iterable[Object], images: Mapping[tuple[str, str], _Series]) -> None:
        """Give segmentations to the volumes of the series they name, else of the only one in their frame of reference.

        One that fits none is refused, and so is a second one of the same volume.
        """
        for label in sorted(labels, key=lambda found: found.file):
            fitting = [series for (_, uid), series in images.items() if uid in label.references]
            if not label.references:
                fitting = [series for series in images.values() if _in_frame(series, label.frame_of_reference)]
                fitting = fitting if len(fitting) == 1 else []
            sources = [source for series in fitting for source in series.sources if source.problem is None]
            free = [source for source in sources if source.label is None]
            for source in free:
                source.label, source.classes = label.file, label.classes | {0: "background"}
            if not sources:
                self.refuse(label.file, Refusal("label_without_image"))
            elif not free:
                self.refuse(label.file, Refusal("duplicate", "another segmentation of the same series was taken"))


def identifies(name: str, words: Iterable[str]) -> bool:
    """Whether a file's or folder's name holds one of `words`, a date or a UID."""
    if _DATE.search(name) or _UID.search(name):
        return True
    letters = plain(name)
    return any(word in letters for word in words)


def _in_frame(series: _Series, frame_of_reference: str) -> bool:
    return bool(frame_of_reference) and any(
        found.frame_of_reference == frame_of_reference for found in series.objects if found.problem is None
    )


def _three_planes(stacks: Sequence[Stack]) -> bool:
    """Whether stacks look along three directions that are more across than along each other."""
    normals: list[Picture] = []
    for stack in stacks:
        first = stack.pictures[0]
        if first.axes is not None and all(abs(float(first.normal @ other.normal)) < 0.7 for other in normals):
            normals.append(first)
    return len(normals) >= 3


def _selection(paths: Sequence[Path], pictures: Sequence[Picture], scans: Sequence[Object]) -> list[tuple[int, ...]]:
    """Of each file the frames that belong to a volume; [] when that is all of them."""
    whole = {found.file: len(found.pictures) for found in scans}
    chosen: dict[Path, list[int]] = {path: [] for path in paths}
    for picture in pictures:
        chosen[picture.file].append(picture.frame)
    if all(len(chosen[path]) == whole[path] for path in paths):
        return []
    return [tuple(sorted(chosen[path])) for path in paths]
