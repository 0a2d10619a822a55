"""Find what there is to convert in whatever the user points at: folders, files, patterns, archives, lists.

Folders are listed, and no file is opened but those of unknown extension (are they DICOM?) and descriptions of data
sets. Headers are read at the end, for all that was found at once. What is found, and what it is called, does not depend
on the order in which the sources are given.
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing import archives, drafts, layouts, lists, series
from preprocessing.archives import Scratch
from preprocessing.drafts import Draft, Names
from preprocessing.layouts import Found, Layout, plain
from preprocessing.lists import Listed
from preprocessing.readers import dicom_header, header_file, split_extension
from preprocessing.refusal import Refusal
from preprocessing.source import Root, Source
from preprocessing.subjects import digits
from preprocessing.summary import count, summaries
from preprocessing.tree import Folder
from ssl3d.terminal import printable

FORMATS = "NIfTI, DICOM, NRRD, MetaImage, MINC and MGH files are read"
# Neither images nor worth a look inside; every other unknown file is opened to see whether it is DICOM.
_NO_IMAGES = frozenset(
    f".{extension}"
    for line in (
        "txt md rst json yaml yml csv tsv xml html htm pdf doc docx xls xlsx log py ipynb sh sha256 md5 lock db",
        "png jpg jpeg gif bmp tif tiff svg npy npz pkl h5 parquet zip tar gz tgz bz2 7z rar raw zraw img bval bvec",
    )
    for extension in line.split()
)
_VOXELS = frozenset({".raw", ".zraw", ".img"})  # of headers that lie beside them


@dataclass(frozen=True)
class _Part:
    """A file of the data set in `folder` that was named itself, as `typed`."""

    file: Path
    root: Root
    typed: str
    layout: Layout
    folder: Path


@dataclass
class Discovery:
    """Collects what all sources hold; `finish` makes sources of it.

    `skip`: folders that hold no images to convert. `guess_labels`: masks in plain trees become labels of scans.
    """

    names: Names
    skip: frozenset[Path]
    scratch: Scratch
    say: Callable[[str], None]
    guess_labels: bool = True
    _drafts: list[Draft] = field(default_factory=list)
    _pictures: dict[Path, Root] = field(default_factory=dict)  # files that are or may be DICOM
    _rows: dict[Path, Listed] = field(default_factory=dict)  # the row of a list that named a DICOM file
    _refused: list[Source] = field(default_factory=list)
    _loose: list[tuple[Root, Path]] = field(default_factory=list)  # volume files outside any data set
    _parts: list[_Part] = field(default_factory=list)
    _datasets: dict[Path, Found] = field(default_factory=dict)
    _folders: dict[Path, Folder] = field(default_factory=dict)
    _passed: set[Path] = field(default_factory=set)  # files met in folders that hold no image

    def add(self, argument: str | Path) -> None:
        """Take in one source as the user typed it.

        Raises FileNotFoundError when it is not there, ValueError when it holds no volume.
        """
        typed = str(argument)
        path = Path(argument)
        before = self._count()
        if path.exists():
            self._add_path(path, typed, named=True)
        elif glob.has_magic(typed):
            self._add_pattern(typed)
        else:
            raise FileNotFoundError(f"source {typed} does not exist")
        if self._count() == before:
            raise ValueError(f"source {typed} holds no volume: {FORMATS}")

    def _count(self) -> int:
        return sum(map(len, (self._drafts, self._pictures, self._refused, self._loose, self._parts)))

    def _folder(self, path: Path) -> Folder:
        """A folder's listing, made once."""
        return self._folders.setdefault(path, Folder(path, self.skip))

    def _add_path(self, path: Path, typed: str, named: bool, row: Listed | None = None) -> None:
        """A folder, an archive, a list, or a file."""
        if path.is_dir():
            self._add_folder(path, Root(path, typed))
        elif archives.is_archive(path.name):
            self._add_archive(path, Root(path.parent, typed.rpartition("/")[0], named), typed, depth=0)
        elif lists.is_list(path) and row is None:
            self._add_list(path, typed)
        else:
            self._add_file(path, typed, named)

    def _add_pattern(self, typed: str) -> None:
        """All that fits a pattern; what lies in a folder that fits comes with the folder. Raises FileNotFoundError."""
        found = [Path(match) for match in sorted(glob.glob(typed, recursive=True))]  # noqa: PTH207 - needs a root
        if not found:
            raise FileNotFoundError(f"no file fits the pattern {typed}")
        folders = {path for path in found if path.is_dir()}
        for path in found:
            if not folders.isdisjoint(path.parents):
                continue
            if path in folders or archives.is_archive(path.name) or self._may_be_image(path):
                self._add_path(path, str(path), named=False)

    def _may_be_image(self, path: Path) -> bool:
        return bool(split_extension(path.name)[1]) or _may_be_dicom(path)

    def _add_file(self, path: Path, typed: str, named: bool) -> None:
        """A single file: a part of a data set, a volume, a DICOM file, or nothing that is read."""
        root = Root(path.parent, typed.rpartition("/")[0], named)
        above = layouts.above(path, self._folder)
        if above is not None:
            self._parts.append(_Part(path, root, typed, *above))
        elif split_extension(path.name)[1]:
            self._loose.append((root, header_file(path)))
        elif _may_be_dicom(path, force=True):
            self._pictures.setdefault(path, root)
        else:
            refusal = Refusal("unreadable", f"{path.name} is in no format that is read: {FORMATS}")
            self._refuse(path, root, refusal, typed)

    def _add_folder(self, path: Path, root: Root) -> None:
        above = layouts.above(path, self._folder)
        if above is None or not self._add_part(*above, path, root):
            self._visit(self._folder(path), root, depth=0)

    def _visit(self, folder: Folder, root: Root, depth: int) -> None:
        """A folder and all below: a data set, or files and further folders. `depth`: archives around it."""
        before = self._count()
        layout = layouts.recognise(folder)
        if layout is not None:
            self._add_dataset(layout, folder, root, depth)
            return
        self._loose += [(root, folder.path / name) for name in folder.volumes]
        for name in folder.files:
            path = folder.path / name
            if archives.is_archive(name):
                self._add_archive(path, root, root.shown(path), depth)
            elif not split_extension(name)[1] and _may_be_dicom(path):
                self._pictures.setdefault(path, root)
            elif not split_extension(name)[1] and path.suffix.lower() not in _VOXELS:
                self._passed.add(path)
        for child in folder.folders.values():
            self._visit(child, root, depth)
        if folder.unlisted:
            refusal = Refusal("unreadable", f"the folder cannot be listed: {folder.unlisted}")
            self._refuse_hashed(folder.path, root, refusal, root.shown(folder.path), "folder")
        elif split_extension(folder.path.name)[1] and folder.path != root.path and self._count() == before:
            own, *between, last = root.name(folder.path).split("/")  # its name is a file's, and those are kept
            name = "/".join([own, *(digits(printable(part), self.names.key)[:8] for part in between), last])
            self._refuse(folder.path, root, Refusal("not_a_file"), root.shown(folder.path), name)

    def _read(self, layout: Layout, folder: Folder) -> Found:
        if folder.path not in self._datasets:
            self._datasets[folder.path] = found = layout.read(folder)
            for note in found.notes:
                self.say(f"warning: {note}")
        return self._datasets[folder.path]

    def _add_part(self, layout: Layout, path: Path, part: Path, root: Root) -> bool:
        """The cases of a data set at `path` that lie in a folder of it that was named; False when none does."""
        found = self._read(layout, self._folder(path))
        cases = [case for case in found.cases if case.present and all(part in p.parents for p in case.present)]
        refused = [(path, refusal) for path, refusal in found.refused if part in path.parents]
        name = _dataset_name(path)
        self._drafts += [Draft(case, root, layout.NAME, name) for case in cases]
        for file, refusal in refused:
            self._refuse(file, root, refusal, root.shown(file))
        return bool(cases or refused)

    def _add_dataset(self, layout: Layout, folder: Folder, root: Root, depth: int) -> None:
        """All of a data set, a word about what is left out of it, and what lies in it but is no part of it."""
        found = self._read(layout, folder)
        name = _dataset_name(folder.path)
        self._drafts += [Draft(case, root, layout.NAME, name) for case in found.cases]
        for path, refusal in found.refused:
            self._refuse(path, root, refusal, root.shown(path))
        for path in found.left:
            self.say(f"left out {root.shown(path)} ({layout.NAME}): name the folder itself to convert it")
        used = {file for case in found.cases for file in case.files()} | {path for path, _ in found.refused}
        inside = {parent for file in used for parent in file.parents}
        for place in folder.walk(into=lambda child: child.path in inside):
            for name in place.volumes:
                if place.path / name not in used:
                    detail = f"{name} is neither an image nor a label of the {layout.NAME} data set it lies in"
                    path = place.path / name
                    self._refuse(path, root, Refusal("not_in_layout", detail), root.shown(path))
            for child in place.folders.values():
                if child.path not in inside and child.path not in found.left:
                    self._visit(child, root, depth)

    def _settle_parts(self) -> None:
        """Files of data sets that were named one by one: whole cases count as such, the rest as plain files."""
        datasets: dict[Path, list[_Part]] = {}
        for part in self._parts:
            datasets.setdefault(part.folder, []).append(part)
        for path, parts in datasets.items():
            layout, name = parts[0].layout, _dataset_name(path)
            found = self._read(layout, self._folder(path))
            named = {part.file: part for part in parts}
            taken: set[Path] = set()
            for case in found.cases:
                if case.present and named.keys() >= set(case.present):
                    first = named[case.present[0]]
                    self._drafts.append(Draft(case, first.root, layout.NAME, name, typed=first.typed))
                    taken.update(case.files())
            for file, refusal in found.refused:
                if file in named:
                    self._refuse(file, named[file].root, refusal, named[file].typed)
                    taken.add(file)
            self._loose += [(part.root, part.file) for part in parts if part.file not in taken]
        self._parts.clear()

    def _add_archive(self, path: Path, root: Root, typed: str, depth: int) -> None:
        if depth >= archives.MAX_DEPTH:
            refusal = Refusal("archive_bomb", "it lies in an archive inside an archive: unpack it yourself")
            self._refuse_hashed(path, root, refusal, typed, "archive")
            return
        self.say(f"unpacking {typed}")
        try:
            place = self.scratch.unpack(path)
        except Refusal as refusal:
            self._refuse_hashed(path, root, refusal, typed, "archive")
            return
        folder = Folder(place, self.skip)
        while not folder.files and len(folder.folders) == 1:  # an archive of a folder is that folder
            folder = next(iter(folder.folders.values()))
            typed = f"{typed}/{folder.name}"
        self._visit(folder, Root(folder.path, typed, packed=True), depth + 1)

    def _add_list(self, path: Path, typed: str) -> None:
        """The scans of a list. Raises ValueError when it cannot be used at all."""
        found = lists.read_list(path, typed)
        for note in found.notes:
            self.say(f"warning: {note}")
        for row in found.rows:
            if row.problem is None:
                self._add_row(row)
            else:
                self._refuse_row(row, row.problem)

    def _add_row(self, row: Listed) -> None:
        """What a row names, each source of it with what the row says."""
        inner = Discovery(
            self.names, self.skip, self.scratch, self.say, _datasets=self._datasets, _folders=self._folders
        )
        inner._add_path(row.path, str(row.path), named=False, row=row)
        inner._settle_parts()
        inner._settle_loose()
        if inner._count() == 0:
            self._refuse_row(row, Refusal("unreadable", f"it holds no volume: {FORMATS}"))
        if row.label is not None and len(inner._drafts) > 1:
            detail = f"{row.where} gives one label to {len(inner._drafts)} scans"
            self._refuse_row(row, Refusal("bad_row", detail))
            return
        for draft in inner._drafts:
            draft.row = row
        self._drafts += inner._drafts
        for source in inner._refused:
            source.shown, source.name = row.shown, row.name
        self._refused += inner._refused
        for path, root in inner._pictures.items():
            self._pictures.setdefault(path, root)
            self._rows.setdefault(path, row)

    def _settle_loose(self) -> None:
        """Volume files outside any data set become drafts: whose they are, and which are masks of others."""
        roots: dict[Root, list[Path]] = {}
        for root, file in self._loose:
            roots.setdefault(root, []).append(file)
        for root, files in roots.items():
            places = plain.places(sorted(set(files)), root.path)
            for case in plain.cases(list(places), self.guess_labels):
                file = case.present[0]
                typed = root.shown(file)
                self._drafts.append(Draft(case, root, plain.NAME, place=places[file], typed=typed))
        self._loose.clear()

    def finish(self) -> list[Source]:
        """All sources, each once, sorted: by id, then by whose they are. Says what was found where."""
        self._settle_parts()
        self._settle_loose()
        found = drafts.build(drafts.distinct(self._drafts), self.names)
        pictures = dict(sorted(self._pictures.items()))
        images = series.group(pictures, self.names.key, self.names.patients)
        for source in images:
            row = next((self._rows[path] for path in source.paths if path in self._rows), None)
            if row is not None:
                drafts.apply_row(source, row)
        for line in summaries(found, [(pictures[source.paths[0]], source) for source in images]):
            self.say(line)
        told = {path for source in images for path in (*source.paths, source.label)}
        if passed := len(self._passed | (pictures.keys() - told)):
            self.say(f"passed over {count(passed, 'file')} without an image (documents, reports, indices)")
        every = [*(source for _, source in found), *images, *self._refused]
        for source in every:
            source.name, source.shown, source.public = map(printable, (source.name, source.shown, source.public))
        return sorted(every, key=lambda s: (s.id.lower(), s.id, s.subject, s.session, s.name, s.shown))

    def _refuse_row(self, row: Listed, refusal: Refusal) -> None:
        self._refused.append(Source("", row.name, row.shown, row.path.name, [row.path], "", "", "", problem=refusal))

    def _refuse(self, path: Path, root: Root, refusal: Refusal, shown: str, name: str = "") -> None:
        name = name or root.name(path)
        self._refused.append(
            Source("", name, shown, path.name, [path], "", "", "", named=root.named, problem=refusal)
        )

    def _refuse_hashed(self, path: Path, root: Root, refusal: Refusal, shown: str, kind: str) -> None:
        """A folder or an archive, which may be called after a patient: its name stays out of refused.csv."""
        self._refuse(path, root, refusal, shown, f"{kind}-{digits(printable(root.name(path)), self.names.key)}")


def _dataset_name(folder: Path) -> str:
    """A data set's own name: that of its folder, or of the archive that holds it."""
    return archives.bare_name(folder.resolve().name)


def _may_be_dicom(path: Path, force: bool = False) -> bool:
    """By extension, else (for names that say nothing) by the magic word inside."""
    suffix = path.suffix.lower()
    if suffix in dicom_header.EXTENSIONS:
        return True
    if (suffix in _NO_IMAGES and not force) or not path.is_file():  # to open a pipe may never end
        return False
    try:
        return dicom_header.is_dicom(path)
    except OSError:
        return False
