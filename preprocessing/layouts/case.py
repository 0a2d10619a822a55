"""What a layout says about the files of a data set: its cases, and what it knowingly leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from preprocessing.readers import split_extension
from preprocessing.refusal import Refusal
from preprocessing.tree import Folder


@dataclass
class Case:
    """One scan, or the channels of one, and what the data set says about it.

    `name` becomes the volume's id. `images`: a file, or a file a channel (None where one is missing). `channels`: the
    files, or the frames of the one file, are channels of one volume; else frames are volumes of one session.
    `label`: file of all classes; `masks`: {class: file of its voxels}, merged into one label. `guessed`: the label is
    a guess from names, dropped when its grid is not the image's. `subject`: the pseudonym that the data set states, ""
    where it states none that could not be a name. `raw_subject`: what split files may call the subject otherwise.
    `modality`: per channel, or None. `targets`: numbers, and classes as text.
    """

    name: str
    images: list[Path | None]
    label: Path | None = None
    masks: dict[str, Path] = field(default_factory=dict)
    guessed: bool = False
    channels: bool = False
    subject: str = ""
    raw_subject: str = ""
    session: str = ""
    modality: list[str | None] | None = None
    classes: dict[int, str] = field(default_factory=dict)
    ignore: int | None = None
    targets: dict[str, float | str] = field(default_factory=dict)
    problem: Refusal | None = None

    @property
    def present(self) -> list[Path]:
        """The images that are there."""
        return [image for image in self.images if image is not None]

    def files(self) -> list[Path]:
        """Everything of the data set that belongs to the case."""
        return [*self.present, *([] if self.label is None else [self.label]), *self.masks.values()]


@dataclass
class Found:
    """A data set: its cases; `refused` files that it names or holds and that are no scans; `left`: folders that are
    not looked into unless the user names them; `notes`: sentences for the user."""

    cases: list[Case] = field(default_factory=list)
    refused: list[tuple[Path, Refusal]] = field(default_factory=list)
    left: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Listing = Callable[[Path], Folder]  # a folder's content, listed once


class Layout(Protocol):
    """A module of this package: `NAME` for the log, `ORDER` (lower is asked first), and these three."""

    NAME: str
    ORDER: int

    def matches(self, folder: Folder) -> bool:
        """Whether the folder is a data set of this layout, told from names (and one small file at most)."""

    def read(self, folder: Folder) -> Found:
        """Its cases. Raises ValueError naming a description that cannot be used."""

    def above(self, path: Path, listing: Listing) -> Path | None:
        """The data set's folder when the user points at a folder or file inside one, else None."""


def stem(path: Path | str) -> str:
    """A file's name without its extension, however long that is."""
    return split_extension(path if isinstance(path, str) else path.name)[0]


def paths(folder: Folder, names: Iterable[str]) -> list[Path]:
    """Names as paths in a folder."""
    return [folder.path / name for name in names]
