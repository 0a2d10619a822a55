"""Find what volumes there are to convert: research layouts, DICOM series, plain files and trees of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from preprocessing import datasets, readers, series
from preprocessing.modality import from_name
from preprocessing.readers import dicom, split_extension
from preprocessing.refusal import Refusal
from preprocessing.source import Root, Source, clean_id
from preprocessing.subjects import Patients
from ssl3d.data.subjects import hash_subject

FORMATS = "NIfTI, DICOM, NRRD, MetaImage, MGH and MINC files are read"
# Neither images nor worth a look inside; every other unknown file is opened to see whether it is DICOM.
_NO_IMAGES = frozenset(
    f".{extension}"
    for line in (
        "txt md rst json yaml yml csv tsv xml html htm pdf doc docx xls xlsx log py ipynb sh sha256 md5 lock db",
        "png jpg jpeg gif bmp tif tiff svg npy npz pkl h5 parquet zip tar gz tgz bz2 7z rar raw zraw img bval bvec",
    )
    for extension in line.split()
)


@dataclass
class Discovery:
    """Where to look, and what is needed to name what is found. `skip`: folders that hold no images to convert."""

    key: bytes
    skip: set[Path]
    patients: Patients = field(default_factory=Patients)

    def of(self, argument: str | Path) -> list[Source]:
        """What one source named by the user holds, in a stable order.

        Raises FileNotFoundError when it is not there, ValueError when a folder holds no volume.
        """
        path = Path(argument)
        if not path.exists():
            raise FileNotFoundError(f"source {argument} does not exist")
        if path.is_file():
            return [replace(source, named=True, shown=str(argument)) for source in self._file(path)]
        found = self._folder(path, str(argument))
        if not found:
            raise ValueError(f"source {argument} holds no volume: {FORMATS}")
        return found

    def _file(self, path: Path) -> list[Source]:
        path = readers.header_file(path)
        if split_extension(path.name)[1]:
            return [self._plain(path, path.parent, str(path))]
        found = {path: Root(path.parent, str(path.parent))} if _may_be_dicom(path, force=True) else {}
        sources = series.group(found, self.key, self.patients)
        if not sources:
            refusal = Refusal("unreadable", f"{path.name} is in no format that is read: {FORMATS}")
            return [self._refused(path, path.parent, str(path), refusal)]
        return sources

    def _folder(self, root: Path, typed: str) -> list[Source]:
        if datasets.is_dataset(root):
            return self._dataset(root, root, typed, datasets.IMAGE_FOLDERS)
        if root.name in datasets.IMAGE_FOLDERS and datasets.is_dataset(root.parent):
            return self._dataset(root.parent, root, typed, (root.name,))
        found: list[Source] = []
        pictures: list[Path] = []
        disguised: list[Path] = []
        for folder, files in self._walk(root):
            if folder != root and split_extension(folder.name)[1]:
                disguised.append(folder)
            if folder != root and datasets.is_dataset(folder):
                found += self._dataset(folder, root, typed, datasets.IMAGE_FOLDERS)
                continue
            for file in files:
                if split_extension(file.name)[1]:
                    if readers.header_file(file) == file:  # an .img comes with its .hdr
                        found.append(self._plain(file, root, typed))
                elif _may_be_dicom(file):
                    pictures.append(file)
        reached = [*pictures, *(path for source in found for path in source.paths)]
        for folder in disguised:  # unpackers make x.nii/x.nii: only a folder without any scan pretends to be one
            if not any(path.is_relative_to(folder) for path in reached):
                found.append(self._refused(folder, root, typed, Refusal("not_a_file")))
        return found + series.group(dict.fromkeys(pictures, Root(root, typed)), self.key, self.patients)

    def _walk(self, root: Path) -> Iterator[tuple[Path, list[Path]]]:
        """(folder, files) in sorted order, without hidden names, stores, skipped folders and what lies in data sets."""
        for name, folders, files in os.walk(root):
            folder = Path(name)
            folders[:] = sorted(f for f in folders if not f.startswith(".") and (folder / f).resolve() not in self.skip)
            if "zarr.json" in files:
                folders.clear()
                continue
            if folder != root and datasets.is_dataset(folder):
                folders.clear()
            yield folder, [folder / f for f in sorted(files) if not f.startswith(".")]

    def _plain(self, path: Path, root: Path, typed: str) -> Source:
        """A volume file outside any layout; several frames are volumes of one session."""
        stem = split_extension(path.name)[0]
        source = Source(
            id=clean_id(stem),
            name=Root(root, typed).name(path),
            shown=Root(root, typed).shown(path),
            public=path.name,
            paths=[path],
            subject=self.patients.of(path, stem) or hash_subject(stem, self.key),
            session=clean_id(stem),
            folder=path.parent.name,
            raw_subject=stem,
        )
        try:
            source.frames = readers.header(path).frames
        except Refusal as refusal:
            source.problem = refusal
        return source

    def _refused(self, path: Path, root: Path, typed: str, refusal: Refusal) -> Source:
        name = Root(root, typed).name(path)
        return Source("", name, Root(root, typed).shown(path), path.name, [path], "", "", "", problem=refusal)

    def _dataset(self, folder: Path, root: Path, typed: str, folders: tuple[str, ...]) -> list[Source]:
        """The cases of a data set; the files of a case, or the frames of its 4D file, are channels."""
        dataset = datasets.read_dataset(folder, folders)
        modality: list[str | None] = [from_name(name) for name in dataset.channels]
        found = []
        for case in dataset.cases:
            present = [p for p in case.images if p is not None]
            channels = len(dataset.channels) > 1 or len(case.images) > 1
            source = replace(
                self._plain(present[0], root, typed),
                id=clean_id(case.name),
                session=clean_id(case.name),
                subject=self.patients.of(present[0], case.name) or case.name,
                raw_subject=case.name,
                folder=folder.resolve().name,
                paths=present,
                channels=channels,
                label=case.label,
                classes=dict(dataset.classes),
                ignore=dataset.ignore,
                modality=modality or None,
            )
            if channels:
                source.problem = source.problem or _channel_problem(case, source.frames, max(len(modality), 1))
                source.frames = 1
            found.append(source)
        for path in dataset.absent:
            refusal = Refusal("missing_file", f"dataset.json lists {path.name}, which is not there")
            found.append(self._refused(path, root, _typed_root(folder, root, typed), refusal))
        return found


def _channel_problem(case: datasets.Case, frames: int, expected: int) -> Refusal | None:
    """Why the channels of a case are incomplete, if they are."""
    missing = [number for number, path in enumerate(case.images) if path is None]
    if missing:
        return Refusal("missing_channel", f"channel {missing[0]} of {case.name} (_{missing[0]:04d}) is missing")
    have = frames if len(case.images) == 1 else len(case.images)
    if have != expected:
        return Refusal("channel_mismatch", f"{case.name} has {have} channels, dataset.json names {expected}")
    return None


def _may_be_dicom(path: Path, force: bool = False) -> bool:
    """By extension, else (for names that say nothing) by the magic word inside; a pipe or device is not opened."""
    suffix = path.suffix.lower()
    if suffix in dicom.EXTENSIONS:
        return True
    if (suffix in _NO_IMAGES and not force) or not path.is_file() or not os.access(path, os.R_OK):
        return False
    return dicom.is_dicom(path)


def _typed_root(folder: Path, root: Path, typed: str) -> str:
    return Root(root, typed).shown(folder) if folder != root else typed


def assign_unique_ids(sources: Sequence[Source], taken: Mapping[str, str], digests: Sequence[str]) -> None:
    """Make ids unique in place: a folder's name goes before those that collide, then a number behind.

    `taken` {id: content digest} of what the store holds; the same content under the same id is the same volume.
    """
    counts: dict[str, int] = {}
    for source in sources:
        counts[source.id.lower()] = counts.get(source.id.lower(), 0) + 1
    used: set[str] = set()
    reserved = {name.lower(): digest for name, digest in taken.items()}
    for source, digest in zip(sources, digests):
        base = source.id
        if counts[base.lower()] > 1 and source.folder:
            base = clean_id(f"{source.folder}_{base}")
        number = 1
        candidate = base
        while candidate.lower() in used or reserved.get(candidate.lower(), digest) != digest:
            number += 1
            candidate = f"{base}-{number}"
        source.id = candidate
        used.add(candidate.lower())
