"""Checkpoints: whole or not at all, any flipped bit noticed, written beside the training."""

from __future__ import annotations

import errno
import random
import re
import threading
import zipfile

import pytest
import torch

from ssl3d import checkpoint, checkpoint_file, disk
from ssl3d.checkpoint_writer import CheckpointWriter
from ssl3d.snapshot import Snapshot


def content(step: int) -> dict:
    return {"step": step, "backbone_spec": {}, "model": {"w": torch.full((7, 5), float(step))}}


def never() -> bool:
    return False


def test_a_file_comes_back_and_is_an_ordinary_torch_file(tmp_path):
    tied = torch.randn(3, 4)
    checkpoint_file.write(tmp_path / "a.pt", {"a": tied, "b": tied, "c": [1, "x", None, 2.5]})
    for back in (checkpoint_file.read(tmp_path / "a.pt"), torch.load(tmp_path / "a.pt", weights_only=True)):
        assert torch.equal(back["a"], tied)
        assert back["c"] == [1, "x", None, 2.5]
        assert back["a"].data_ptr() == back["b"].data_ptr()
    assert zipfile.ZipFile(tmp_path / "a.pt").testzip() is None
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_one_flipped_bit_anywhere_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint_file.write(path, {"a": torch.randn(40, 40)})
    whole, rng = path.read_bytes(), random.Random(0)
    for position in [*range(0, len(whole), 61), *range(len(whole) - 64, len(whole))]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.pt is damaged"):
            checkpoint_file.read(path)


@pytest.mark.parametrize("left", [0, 1, 41, 42, 43, 1000])
def test_a_file_cut_short_is_noticed(tmp_path, left):
    path = tmp_path / "a.pt"
    checkpoint_file.write(path, {"a": torch.randn(40, 40)})
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint_file.read(path)


def test_the_one_before_is_used_when_the_last_is_damaged(tmp_path):
    checkpoint.save(tmp_path, content(1))
    checkpoint.save(tmp_path, content(2))
    last = tmp_path / "checkpoints" / "last.pt"
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    last.write_bytes(damaged)
    found, note = checkpoint.latest(tmp_path)
    assert found["step"] == 1
    assert "last.pt is damaged" in note and note.endswith("going on from previous.pt at step 1")


def test_the_newest_whole_one_is_used_wherever_a_kill_left_it(tmp_path):
    checkpoint.save(tmp_path, content(1))
    folder = tmp_path / "checkpoints"
    (folder / "last.pt").rename(folder / "new.pt")  # killed before the last rename of a save
    checkpoint_file.write(folder / "previous.pt", {"format": checkpoint.FORMAT, **content(0)})
    found, note = checkpoint.latest(tmp_path)
    assert (found["step"], note) == (1, None)


def test_who_opens_a_run_whose_last_checkpoint_is_damaged_is_told(tmp_path, capsys):
    for step in (1, 2):
        checkpoint.save(tmp_path, {"step": step, "backbone_spec": {}})
    files = [tmp_path / "checkpoints" / name for name in ("last.pt", "previous.pt")]
    assert checkpoint.open_run(tmp_path)["step"] == 2 and not capsys.readouterr().err
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert checkpoint.open_run(tmp_path)["step"] == 1
    assert re.search(r"last\.pt is damaged .*; going on from previous\.pt at step 1$", capsys.readouterr().err)
    files[1].write_bytes(b"")
    with pytest.raises(ValueError, match=r"last\.pt is damaged .* holds no whole one: copy the run again, or train"):
        checkpoint.open_run(tmp_path)


def test_a_snapshot_keeps_its_values_and_what_shares_memory():
    weight = torch.arange(6.0)
    tree = {"a": weight, "b": [weight, {"c": weight[:2]}], "d": "text", "e": torch.zeros(0)}
    snapshot = Snapshot()
    taken = snapshot.take(tree)
    weight += 1
    assert taken["a"].tolist() == [0, 1, 2, 3, 4, 5]
    assert taken["b"][0] is taken["a"]
    assert taken["b"][1]["c"].tolist() == [0, 1]
    assert taken["d"] == "text"
    address = taken["a"].data_ptr()
    again = snapshot.take(tree)
    assert again["a"].data_ptr() == address, "the same memory is used again"
    assert again["a"].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_save_waits_for_no_disk_and_the_next_one_for_the_one_before(tmp_path, monkeypatch):
    began, go = threading.Event(), threading.Event()
    original = checkpoint.save

    def slow(run, what, best):
        began.set()
        assert go.wait(30)
        return original(run, what, best)

    monkeypatch.setattr(checkpoint, "save", slow)
    writer = CheckpointWriter(tmp_path, never)
    weights = content(1)
    writer.save(weights)
    assert began.wait(30)
    assert checkpoint.latest(tmp_path) == (None, None), "save came back before anything was written"
    weights["model"]["w"] += 100
    go.set()
    writer.save(content(2))
    writer.close()
    found, _ = checkpoint.latest(tmp_path)
    previous = checkpoint.read(tmp_path / "checkpoints" / "previous.pt")
    assert found["step"] == 2
    assert previous["model"]["w"].eq(1).all(), "the snapshot of the first save"


@pytest.fixture
def full_disk(monkeypatch):
    """full_disk(n): the next n flushes to the disk find no room."""
    monkeypatch.setattr(disk, "TRY_SECONDS", 0.01)

    def arm(times: int) -> list[int]:
        left, original = [times], checkpoint_file.os.fsync

        def fsync(descriptor):
            if left[0] > 0:
                left[0] -= 1
                raise OSError(errno.ENOSPC, "No space left on device")
            original(descriptor)

        monkeypatch.setattr(checkpoint_file.os, "fsync", fsync)
        return left

    return arm


def test_a_full_disk_is_waited_for(tmp_path, full_disk, capsys):
    checkpoint.save(tmp_path, content(1))
    full_disk(3)
    writer = CheckpointWriter(tmp_path, never)
    writer.save(content(2), wait=True)
    writer.close()
    assert checkpoint.latest(tmp_path)[0]["step"] == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "is full" in lines[0] and "going on" in lines[1]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["last.pt", "previous.pt"]


@pytest.mark.parametrize("asked", [False, True], ids=["patience", "signal"])
def test_waiting_for_room_ends_and_keeps_what_was_saved(tmp_path, full_disk, asked):
    checkpoint.save(tmp_path, content(1))
    full_disk(10**6)
    writer = CheckpointWriter(tmp_path, lambda: asked, patience=0.05 if not asked else 3600)
    with pytest.raises(disk.DiskFull, match=r"the disk is full.*run the same command again"):
        writer.save(content(2), wait=True)
    writer.close()
    assert checkpoint.latest(tmp_path)[0]["step"] == 1


def test_an_error_that_is_no_full_disk_is_raised_at_once(tmp_path, monkeypatch):
    def broken(run, what, best):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "save", broken)
    writer = CheckpointWriter(tmp_path, never)
    writer.save(content(1))
    with pytest.raises(OSError, match="Input/output error"):
        writer.save(content(2))


def test_what_the_file_raised_is_raised_not_what_torch_made_of_it(tmp_path, monkeypatch):
    def write(self, data):
        self.error = OSError(errno.ENOSPC, "No space left on device")
        raise self.error

    monkeypatch.setattr(checkpoint_file._Hashed, "write", write)
    with pytest.raises(OSError, match="No space left"):
        checkpoint_file.write(tmp_path / "a.pt", {"a": torch.zeros(3)})
    assert not list(tmp_path.iterdir())
