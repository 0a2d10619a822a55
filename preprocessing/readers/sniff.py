"""What lies under a file's name: a file at all, and an image rather than a pointer, a web page or another format."""

from __future__ import annotations

import os
from pathlib import Path

from preprocessing.refusal import Refusal

GZIP_MAGIC = b"\x1f\x8b"
HEAD_BYTES = 1024  # enough for every magic word
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ", "xz data"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"CDF\x01", "a netCDF file"),
    (b"CDF\x02", "a netCDF file"),
    (b"NRRD", "an NRRD file"),
    (b"ObjectType", "a MetaImage file"),
    (b"NDims", "a MetaImage file"),
    (GZIP_MAGIC, "gzip data"),
)
_MAY_HOLD_TEXT = 256  # bytes of printable characters at the start that no binary header has
_FOREIGN_LETTERS = 0.6  # share of bytes beyond ASCII in any script's UTF-8 with its markup


def check_is_file(path: Path) -> None:
    """Raises Refusal unless `path` is a file with bytes in it that may be read."""
    if not path.exists():
        if path.is_symlink():
            raise Refusal("dangling_link", f"{path.name} is a link to a file that is not there")
        raise Refusal("missing_file", f"{path.name} is not there")
    if not path.is_file():
        what = "folder" if path.is_dir() else "device or pipe"
        raise Refusal("not_a_file", f"{path.name} is a {what}, not a file")
    if not os.access(path, os.R_OK):
        raise Refusal("no_permission", f"{path.name} may not be read by this user")
    if path.stat().st_size == 0:
        raise Refusal("empty_file", f"{path.name} has no bytes")


def check_is_no_impostor(head: bytes, expected: bytes | None = None) -> None:
    """Raises Refusal when the first bytes of a file (at most 1,024, decompressed) are those of something else.

    `expected`: how a file of the format starts, where its format has such a word.
    """
    if expected is not None and head.startswith(expected):
        return
    if head.startswith(b"version https://git-lfs"):
        raise Refusal("git_lfs_pointer")
    if head.startswith((b"/annex/objects/", b"../.git/annex", b".git/annex")):
        raise Refusal("git_annex_pointer")
    if not head.strip(b"\0"):
        raise Refusal("blank_file")
    for magic, name in _OTHER_FORMATS:
        if head.startswith(magic) and magic != expected:
            raise Refusal("wrong_format", f"the content is {name}, which its name does not say")
    if head[128:132] == b"DICM":
        raise Refusal("wrong_format", "the content is a DICOM file, which its name does not say")
    _check_is_no_text(head)


def _check_is_no_text(head: bytes) -> None:
    """Raises Refusal for what a server or an editor writes."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:_MAY_HOLD_TEXT]
    if not start or any(byte < 9 or 13 < byte < 32 for byte in start):
        return
    if sum(byte > 126 for byte in start) > _FOREIGN_LETTERS * len(start):
        return
    if start.startswith(b"<"):
        raise Refusal("web_page")
    if start.startswith((b"{", b"[")):
        raise Refusal("json_reply")
    raise Refusal("plain_text")
