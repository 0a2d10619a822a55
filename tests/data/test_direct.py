"""Files written past the page cache hold what they were given, on file systems that know no such writes too."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from ssl3d.data import direct
from ssl3d.data.direct import BUFFER_BYTES, write_parts


def parts_of(total: int, part: int) -> list[bytes]:
    content = np.random.default_rng(0).integers(0, 256, total, dtype=np.uint8).tobytes()
    return [content[first : first + part] for first in range(0, total, part)]


@pytest.mark.parametrize("total", [0, 1, 4096, BUFFER_BYTES - 1, BUFFER_BYTES, 2 * BUFFER_BYTES + 4097])
@pytest.mark.parametrize("part", [100_003, 3 * BUFFER_BYTES])
def test_every_byte_arrives_in_order(tmp_path, total, part):
    parts = parts_of(total, part)
    write_parts(tmp_path / "file", iter(parts))
    assert (tmp_path / "file").read_bytes() == b"".join(parts)


def test_an_older_longer_file_leaves_nothing(tmp_path):
    write_parts(tmp_path / "file", parts_of(2 * BUFFER_BYTES, BUFFER_BYTES))
    write_parts(tmp_path / "file", [b"short"])
    assert (tmp_path / "file").read_bytes() == b"short"


@pytest.mark.parametrize("cut", [None, 512, 1000, BUFFER_BYTES - 4096])
def test_a_file_system_that_refuses_or_cuts_direct_writes_gets_the_rest_through_its_cache(tmp_path, monkeypatch, cut):
    whole, calls = os.write, []

    def write(descriptor, block):
        calls.append(len(block))
        if len(calls) > 1:
            return whole(descriptor, block)
        if cut is None:
            raise OSError(errno.EINVAL, "no direct writes here")
        direct._set_direct(descriptor, False)  # the bytes of a short direct write are written all the same
        return whole(descriptor, block[:cut])

    monkeypatch.setattr(os, "write", write)
    parts = parts_of(2 * BUFFER_BYTES + 5, 1 << 20)
    write_parts(tmp_path / "file", iter(parts))
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
    assert calls[:2] == [BUFFER_BYTES, BUFFER_BYTES - (cut or 0)]


def test_what_stops_a_write_is_raised(tmp_path, monkeypatch):
    def full(descriptor, block):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_parts(tmp_path / "file", parts_of(BUFFER_BYTES, BUFFER_BYTES))


def test_without_direct_writes_the_file_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(direct, "_O_DIRECT", 0)
    parts = parts_of(BUFFER_BYTES + 1, 1 << 20)
    write_parts(tmp_path / "file", iter(parts))
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
