"""Voxels that a text header describes (NRRD, MetaImage): where they lie, plain or compressed, in one file or several.

The headers are parsed here and not by ITK, because ITK believes them: it fills what a truncated stream lacks with zeros
and ignores checksums. The tests compare every transform with ITK's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preprocessing.geometry import Scan, check_affine
from preprocessing.readers import contents, sniff, values
from preprocessing.readers.header import Header
from preprocessing.refusal import Refusal

HEADER_LIMIT = 1 << 18  # bytes; real headers have some hundreds


@dataclass
class Raster:
    """A parsed header. `sizes` and `frame_axis` (or None) in storage order, the fastest axis first.

    `files` hold equal shares of the voxels, one after another, from `offset` on; -1: they are a file's last bytes.
    """

    files: list[Path]
    offset: int
    compressed: bool
    dtype: np.dtype
    sizes: tuple[int, ...]
    frame_axis: int | None
    affine: np.ndarray
    flags: list[str] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """Volumes in the file."""
        return 1 if self.frame_axis is None else self.sizes[self.frame_axis]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z) of a volume."""
        x, y, z = (n for axis, n in enumerate(self.sizes) if axis != self.frame_axis)
        return x, y, z

    def check(self) -> None:
        """Raises Refusal for sizes, a transform or files that cannot be."""
        if min(self.sizes) <= 0:
            raise Refusal("bad_dimensions", f"an axis of {self.sizes} has no voxels")
        check_affine(self.affine)
        for file in self.files:
            if not file.exists() and not file.is_symlink():
                raise Refusal("missing_data", f"{file.name}, which the header names, is not there")
            sniff.check_is_file(file)
            start = self._start(file)
            contents.check_size(file, start, self._share(), self.compressed)
            if not self.compressed:
                self.flags += contents.check_surplus(file.stat().st_size - start - self._share())

    def _share(self) -> int:
        """Bytes of voxels a file. Raises Refusal `bad_dimensions` where the files cannot share them."""
        total = int(np.prod([*self.sizes, self.dtype.itemsize], dtype=object))
        if total % len(self.files):
            raise Refusal("bad_dimensions", f"{len(self.files)} files cannot hold equal shares of {self.sizes} voxels")
        return total // len(self.files)

    def _start(self, file: Path) -> int:
        return self.offset if self.offset >= 0 else max(0, file.stat().st_size - self._share())

    def scans(self, frames: Sequence[int] | None) -> Iterator[Scan]:
        """The frames, each (1, X, Y, Z). Raises Refusal."""
        data = bytearray().join(
            contents.stream_of(file, self._start(file), self._share(), self.compressed) for file in self.files
        )
        array = np.frombuffer(data, self.dtype).reshape(self.sizes, order="F")
        series = array[..., None] if self.frame_axis is None else np.moveaxis(array, self.frame_axis, -1)
        for number in range(self.frames) if frames is None else frames:
            volume = series[..., number]
            values.check_byte_order(volume)
            yield Scan(values.physical(volume)[None], self.affine, flags=sorted(set(self.flags)))

    def header(self) -> Header:
        """What discovery needs."""
        return Header(self.shape, self.frames, self.affine)


def beside(header: Path, name: str) -> Path:
    """The file that a header names. Raises Refusal `outside_folder`: a header may not make us read what it likes."""
    path = Path(name)
    if not name or path.is_absolute() or ".." in path.parts:
        raise Refusal("outside_folder", "the header names a file outside its own folder")
    return header.parent / path


def numbered(header: Path, pattern: str, first: int, last: int, step: int) -> list[Path]:
    """The files of a pattern such as slice%03d.raw. Raises Refusal `corrupt_header`."""
    count = (last - first) // step + 1 if step else 0
    if not 1 <= count <= 1 << 16:
        raise Refusal("corrupt_header", "the pattern of the files with the voxels names none")
    try:
        return [beside(header, pattern % number) for number in range(first, first + count * step, step)]
    except (TypeError, ValueError) as error:
        raise Refusal("corrupt_header", f"'{pattern}' is no pattern of file names") from error


def numbers(text: str, count: int, what: str) -> list[float]:
    """`count` numbers of a header's field. Raises Refusal `corrupt_header`."""
    try:
        found = [float(word) for word in text.split()]
    except ValueError:
        found = []
    if len(found) != count:
        raise Refusal("corrupt_header", f"'{text[:60]}' is no {what} of {count} numbers")
    return found


def sizes_of(text: str, count: int) -> tuple[int, ...]:
    """`count` whole numbers. Raises Refusal `bad_dimensions`."""
    words = text.split()
    if len(words) != count or not all(word.lstrip("-").isdigit() for word in words):
        raise Refusal("bad_dimensions", f"'{text[:60]}' are no sizes of {count} axes")
    return tuple(int(word) for word in words)
