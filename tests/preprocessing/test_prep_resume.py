"""What a store goes through between runs: files that vanish, damage, other sources, a place that cannot be written."""

from __future__ import annotations

import errno
import json
import os
import sys

import numpy as np
import pytest
from converting import digests, scans
from tests_prep import save, smooth

from preprocessing import convert, lock, pipeline
from preprocessing.lock import Holder, confirm, exclusive
from ssl3d.data import damage
from ssl3d.data.objects import LocalObjects, StoreError, cannot_write, open_objects
from ssl3d.data.store import open_store


@pytest.fixture
def source(tmp_path):
    return scans(tmp_path / "in", 3, side=14)


def convert_here(source, root, **options):
    return convert(source, root, workers=1, **{"spacing": "keep", **options})


def reasons(report):
    return sorted(reason for _, reason in report.refused)


def test_a_file_that_vanishes_is_refused_and_converted_once_it_is_back(source, tmp_path, monkeypatch):
    convert_here(source, tmp_path / "whole")
    lost = source / "scan_01.nii.gz"
    find = pipeline.find_sources

    def find_and_lose(*arguments, **options):
        found = find(*arguments, **options)
        lost.rename(tmp_path / "elsewhere")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "find_sources", find_and_lose)
        report = convert_here(source, tmp_path / "store")
    assert (report.converted, reasons(report)) == (2, ["empty_file", "missing_file"])
    (tmp_path / "elsewhere").rename(lost)
    assert convert_here(source, tmp_path / "store").converted == 3
    assert digests(tmp_path / "store") == digests(tmp_path / "whole")


def test_damaged_volumes_are_made_again(source, tmp_path, capsys):
    root = tmp_path / "store"
    convert_here(source, root)
    before = digests(root)
    ids = open_store(root).index["id"].tolist()
    shards = [root / "volumes" / name / "c/0/0/0/0" for name in ids]
    data = bytearray(shards[0].read_bytes())
    data[100] ^= 255
    shards[0].write_bytes(data)
    os.truncate(shards[1], 50)
    (root / "volumes" / ids[2] / "thumbnail.npy").unlink()
    capsys.readouterr()
    assert convert_here(source, root).converted == 3
    assert digests(root) == before
    said = [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line]
    assert len(said) == 3 and f"volumes/{ids[0]}/c/0/0/0/0" in said[0] and "scan_00.nii.gz" in said[0]
    (root / "volumes" / ids[1] / "zarr.json").write_bytes(b'{"half": ')
    assert convert_here(source, root).converted == 3
    assert digests(root) == before


def test_damage_that_left_no_trace_is_made_again_once_it_was_noted(source, tmp_path):
    root = tmp_path / "store"
    convert_here(source, root)
    before = digests(root)
    name = open_store(root).index["id"][0]
    shard = root / "volumes" / name / "c/0/0/0/0"
    times = shard.stat()
    data = bytearray(shard.read_bytes())
    data[60] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk does it
    assert not damage.suspect(root, name)
    found = damage.damaged_objects(root, name)
    assert found == [f"volumes/{name}/c/0/0/0/0"]
    damage.note_damage(root, {name: found, "another": ["volumes/another/c/0/0/0/0"]})
    convert_here(source, root)
    assert damage.noted_damage(root) == {"another": ["volumes/another/c/0/0/0/0"]}
    damage.forget_damage(root, ["another"])
    assert digests(root) == before


def test_a_second_source_joins_a_store(tmp_path):
    for folder, seed in (("one", 1), ("two", 2)):
        save(tmp_path / folder / "scan.nii.gz", smooth((14, 13, 12), seed))
        save(tmp_path / folder / f"only_{folder}.nii.gz", smooth((12, 11, 16), seed + 10))
    convert_here(tmp_path / "one", tmp_path / "store")
    first = open_store(tmp_path / "store").index.set_index("fingerprint")["id"]
    report = convert_here(tmp_path / "two", tmp_path / "store")
    assert report.summary == "converted 2, refused 0"
    joined = open_store(tmp_path / "store")
    assert len(joined) == 4 and joined.index["id"].is_unique
    both = joined.index.set_index("fingerprint")["id"]
    assert (both[first.index] == first).all()  # what was there keeps its id
    stats = [s for row in joined.index["foreground_stats"] for s in row]
    counts = np.array([s["count"] for s in stats], float)
    means = np.array([s["mean"] for s in stats])
    assert joined.statistics["mr"]["count"] == counts.sum()
    assert joined.statistics["mr"]["mean"] == pytest.approx((counts * means).sum() / counts.sum())
    before = digests(tmp_path / "store")
    assert convert_here([tmp_path / "one", tmp_path / "two"], tmp_path / "store").converted == 4  # all is known
    assert digests(tmp_path / "store") == before


def test_the_last_lines_say_what_was_refused_for_what(source, tmp_path, capsys):
    save(source / "flat.nii.gz", np.full((9, 8, 7), 3, np.int16))
    (source / "none.nii.gz").write_bytes(b"")
    convert_here(source, tmp_path / "store")
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0].startswith("refused: empty_file 2, constant 1 (") and f"{tmp_path}/store/refused.csv" in last[0]
    assert last[1] == "converted 3, refused 3"


@pytest.mark.skipif(sys.platform != "linux", reason="/sys can be written by nobody")
def test_a_target_that_cannot_be_written_is_one_sentence(source):
    with pytest.raises(StoreError, match=r"store /sys/ssl3d/store cannot be written \(.*\): choose a place") as caught:
        convert_here(source, "/sys/ssl3d/store")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "code,words", [(errno.ENOSPC, "is full"), (errno.EDQUOT, "is full"), (errno.EROFS, "cannot be written"),
                   (errno.EIO, "cannot be written")]
)  # fmt: skip
def test_what_the_system_says_is_explained(tmp_path, monkeypatch, code, words):
    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    objects = LocalObjects(tmp_path / "store")
    with pytest.raises(StoreError, match=f"store .* {words} .{os.strerror(code)}"):
        objects.put("a/b", b"bytes")
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert cannot_write("x", StoreError("said already")).args == ("said already",)


def test_a_worker_that_outlived_its_run_commits_nothing(tmp_path):
    root = str(tmp_path / "store")
    with exclusive(root) as token:
        confirm(root, token)
    with pytest.raises(StoreError, match="no longer held"):
        confirm(root, token)
    with exclusive(root), pytest.raises(StoreError, match="no longer held"):
        confirm(root, token)
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]


def test_a_store_in_use_is_told_before_anything_is_looked_through(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "find_sources", lambda *_: pytest.fail("sources were looked through"))
    url = f"memory://{tmp_path.name}/used.zarr"
    TestLockBehindAUrl.hold(url)
    with exclusive(str(tmp_path / "store")):
        for store in (tmp_path / "store", url):
            with pytest.raises(ValueError, match="is being written by another ssl3d convert"):
                convert(tmp_path, store)


class TestLockBehindAUrl:
    @pytest.fixture
    def root(self, tmp_path):
        return f"memory://{tmp_path.name}/store.zarr"

    @staticmethod
    def hold(root, **changes):
        now = lock.time.time()
        holder = {"token": "t", "host": "node7", "process": 4711, "since": now - 300, "seen": now - 5, **changes}
        open_objects(root).put(".writer.json", json.dumps(holder).encode())

    def test_one_at_a_time_and_gone_when_it_ends(self, root):
        with exclusive(root) as token:
            confirm(root, token)
            with pytest.raises(ValueError, match="being written by another ssl3d convert"), exclusive(root):
                pass
            confirm(root, token)
        assert open_objects(root).names("") == []

    def test_who_holds_it_and_since_when_is_told_at_once(self, root):
        self.hold(root)
        with pytest.raises(ValueError, match=r"process 4711 on node7, begun 300 s ago, last heard of 5 s ago"):
            exclusive(root).__enter__()

    @pytest.mark.parametrize(
        "changes", [{"seen": 0}, {"host": lock.socket.gethostname(), "process": 2**22 + 1}], ids=["silent", "dead"]
    )
    def test_what_nobody_is_behind_is_taken_over(self, root, monkeypatch, changes):
        monkeypatch.setattr(lock, "_SETTLE_S", 0)
        self.hold(root, **changes)
        with exclusive(root) as token:
            confirm(root, token)

    def test_it_is_renewed_until_another_has_it(self, root, monkeypatch):
        monkeypatch.setattr(lock, "RENEW_S", 0.01)
        with exclusive(root) as token:
            first = lock.holder_of(open_objects(root)).seen
            while lock.holder_of(open_objects(root)).seen == first:
                lock.time.sleep(0.01)
            self.hold(root, token="other")
            with pytest.raises(StoreError, match="no longer held"):
                confirm(root, token)
        assert lock.holder_of(open_objects(root)).token == "other"  # not ours to remove

    def test_gone_means_dead_here_or_silent_for_long(self):
        now = lock.time.time()
        assert not Holder("t", "elsewhere", 1, now, now).gone()
        assert Holder("t", "elsewhere", 1, 0, now - lock.STALE_S - 1).gone()
        assert not Holder("t", lock.socket.gethostname(), os.getpid(), now, now).gone()
