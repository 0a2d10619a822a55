"""Files are written whole or not at all, and as any other file: permissions, folders, several writers."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from ssl3d.files import write_atomically, write_bytes, write_json, write_text


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = write_text(tmp_path / "file", "old")

    def write(part):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_is_written_is_what_is_read(tmp_path):
    assert write_bytes(tmp_path / "new" / "bytes", b"\x00\xff").read_bytes() == b"\x00\xff"
    assert write_text(tmp_path / "text", "µ\n").read_text(encoding="utf-8") == "µ\n"
    content = {"b": [1, float("nan")], "a": None}
    assert write_json(tmp_path / "json", content).read_text() == json.dumps(content, indent=2) + "\n"
    assert write_json(tmp_path / "json", content, indent=None).read_text() == json.dumps(content) + "\n"


def test_permissions_are_those_of_the_old_file_or_of_any_new_one(tmp_path):
    old = write_text(tmp_path / "old", "1")
    old.chmod(0o640)
    before = os.umask(0o027)
    try:
        new = write_text(tmp_path / "new", "1")
    finally:
        os.umask(before)
    write_text(old, "2")
    assert stat.S_IMODE(old.stat().st_mode) == 0o640 and stat.S_IMODE(new.stat().st_mode) == 0o640
    assert old.read_text() == "2"


def test_several_writers_of_one_file_leave_one_whole_file(tmp_path):
    contents = [str(i) * 10_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text(tmp_path / "file", text), contents))
    assert (tmp_path / "file").read_text() in contents and len(list(tmp_path.iterdir())) == 1
