"""One thing to convert, and how it is called: in the store, in refused.csv, on the screen."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.refusal import Refusal

if TYPE_CHECKING:
    from preprocessing.readers.header import Header


@dataclass
class Source:
    """One thing to convert: a file, the channels of a case, or a DICOM series; one volume, or one a time frame.

    `name`: for refused.csv, relative, without identifiers; `shown`: as the user typed it; `public`: the `source`
    attribute of the volumes. `channels`: the files (or the frames of the one file) are channels of one volume.
    `raw_subject`: what targets and split files may call the subject; it is not written to the store.
    `series`: DICOM; `selection`: of each of its files, the frames that belong to the volume ([] for all of them).
    `case`: what its data set calls it, or its file name without extension. `header`: of the first file, once read.
    `masks`: {class: file} that make up the label. `target_classes`: targets whose classes have no numbers yet.
    `problem`: why it cannot be converted, known already.
    """

    id: str
    name: str
    shown: str
    public: str
    paths: list[Path]
    subject: str
    session: str
    folder: str
    raw_subject: str = ""
    series: bool = False
    selection: list[tuple[int, ...]] = field(default_factory=list)
    channels: bool = False
    frames: int = 1
    modality: list[str | None] | None = None
    label: Path | None = None
    classes: dict[int, str] = field(default_factory=dict)
    ignore: int | None = None
    targets: dict[str, float] = field(default_factory=dict)
    named: bool = False
    problem: Refusal | None = None
    case: str = ""
    header: Header | None = None
    masks: dict[str, Path] = field(default_factory=dict)
    target_classes: dict[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether a label belongs to it."""
        return self.label is not None or bool(self.masks)

    def volume_ids(self) -> list[str]:
        """Ids of the volumes it becomes."""
        if self.frames == 1:
            return [self.id]
        return [f"{self.id}_t{frame:04d}" for frame in range(self.frames)]


def clean_id(text: str) -> str:
    """`text` as a volume id: letters, digits, '.', '_' and '-', starting with a letter or digit."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    return cleaned or "volume"


@dataclass(frozen=True)
class Root:
    """A folder that files were found in, and how the user typed it; it names what lies below it.

    `named`: the user named the files themselves, one by one, not the folder. `packed`: it came out of an archive.
    """

    path: Path
    typed: str
    named: bool = False
    packed: bool = False

    def name(self, path: Path) -> str:
        """`path` for refused.csv: relative, the folder's own name first; never absolute."""
        return self._own if path == self.path else f"{self._own}/{path.relative_to(self.path).as_posix()}"

    @cached_property
    def _own(self) -> str:
        return self.path.resolve().name

    def shown(self, path: Path) -> str:
        """`path` as the user would write it."""
        if path == self.path:
            return self.typed
        below = path.relative_to(self.path).as_posix()
        return f"{self.typed.rstrip('/')}/{below}" if self.typed else below
