"""The headers of many DICOM files: read in this process when they are few, else by a process a core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from preprocessing import isolation
from preprocessing.readers import dicom_header
from preprocessing.readers.dicom_header import Object
from preprocessing.refusal import Refusal
from ssl3d.data.machine import available_cores

_FEW = 4_000  # files that are read before the processes would have started
_CHUNK = 500  # files a message
_TIMEOUT_S = 60.0  # for one file; a chunk has that for each of its files


def describe_all(files: Sequence[Path], few: int = _FEW) -> Iterator[Object | Refusal]:
    """What each file holds, or why it cannot be read, in their order."""
    if len(files) <= few:
        for file in files:
            yield _describe(file)
        return
    chunks = [files[k : k + _CHUNK] for k in range(0, len(files), _CHUNK)]
    with ThreadPoolExecutor(available_cores()) as pool:
        for found in pool.map(_described_elsewhere, chunks):
            yield from found


def _describe(file: Path) -> Object | Refusal:
    try:
        return dicom_header.describe(file)
    except Refusal as refusal:
        return refusal
    except OSError as error:
        return Refusal("read_error", f"the disk or network failed while the file was read ({error.strerror})")


def _here(files: Sequence[Path]) -> list[Object | Refusal]:
    return [_describe(file) for file in files]


def _described_elsewhere(files: Sequence[Path]) -> list[Object | Refusal]:
    """`_here` in a child process; when the child dies or hangs, one by one, so that the file at fault is found."""
    try:
        return isolation.run(_here, files, timeout_s=_TIMEOUT_S * len(files), imports=dicom_header.__name__)
    except Refusal as refusal:
        if len(files) == 1:
            return [refusal]
        return [found for file in files for found in _described_elsewhere([file])]
