"""A conversion that is killed, stopped, or out of room: what is there is whole, and again gives the same bytes."""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from converting import committed, descendants, digests, finish, nobody_left, scans, start, wait_until
from tests_prep import save, smooth

__all__ = ["nobody_left"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes and limits of Linux")

SCANS = 8  # and a larger one
LIMIT = 600_000  # bytes a file may have: more than the shard of a small scan, less than that of the larger one


@pytest.fixture(scope="module")
def key_of_module(tmp_path_factory):
    """One subject key for all runs of this file, so that their stores can be equal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(autouse=True)
def own_key(key_of_module):
    """Takes the place of the folder's fixture, which makes a key a test."""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = scans(tmp_path_factory.mktemp("source") / "in", SCANS - 1)
    save(folder / "zz_large.nii.gz", 100 * smooth((120, 121, 122), 5, sigma=0.3))
    return folder


@pytest.fixture(scope="module")
def undisturbed(source, key_of_module, tmp_path_factory) -> dict[str, str]:
    """Digests of every object of a store that was made in one go."""
    root = tmp_path_factory.mktemp("whole") / "store"
    code, out, err = finish(source, root, "--workers", 2)
    assert (code, out.splitlines()[-1]) == (0, f"converted {SCANS}, refused 1"), err
    found = digests(root)
    assert len([key for key in found if key.endswith("thumbnail.npy")]) == SCANS
    return found


def resumed(source: Path, root: Path) -> dict[str, str]:
    code, out, err = finish(source, root, "--workers", 2)
    assert (code, out.splitlines()[-1]) == (0, f"converted {SCANS}, refused 1"), out + err
    return digests(root)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_a_killed_run_resumed(source, undisturbed, tmp_path):
    root = tmp_path / "store"
    run = start(source, root, "--workers", 2)
    assert wait_until(lambda: committed(root) >= 2 or run.poll() is not None)
    readers = [p for p in descendants(run) if any("isolation" in word for word in p.cmdline())]
    assert readers and run.poll() is None
    readers[0].kill()  # the process that reads and writes
    assert wait_until(lambda: committed(root) >= 4 or run.poll() is not None)
    below = descendants(run)
    run.kill()
    run.communicate()
    assert wait_until(lambda: not any(alive(p) for p in below), 30)
    assert 4 <= committed(root) < SCANS
    assert resumed(source, root) == undisturbed


@pytest.mark.slow
def test_stopped_it_says_one_sentence_and_leaves_nobody_behind(source, undisturbed, tmp_path):
    root = tmp_path / "store"
    for number, name in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")):
        before = committed(root)
        run = start(source, root, "--workers", 2)
        assert wait_until(lambda before=before, run=run: committed(root) > before or run.poll() is not None)
        run.send_signal(signal.SIGSTOP)  # so that it is not done before it hears of it
        below = descendants(run)
        run.send_signal(number)
        run.send_signal(signal.SIGCONT)
        _, err = run.communicate(timeout=300)
        whole = f"every volume that is in {root} is whole, and the same command goes on where it ended"
        assert (run.returncode, err.strip()) == (1, f"ssl3d: stopped by {name}: {whole}")
        assert wait_until(lambda below=below: not any(alive(p) for p in below), 30)
        assert not (root / ".writer.json").exists() and not list(root.rglob("*.partial"))
    assert resumed(source, root) == undisturbed


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _assert_full(code: int, err: str, root: Path) -> None:
    assert code == 1
    assert len(err.strip().splitlines()) == 1 and f"store {root} is full" in err and "free some space" in err, err
    assert not list(root.rglob("*.partial"))
    for metadata in root.glob("volumes/*/zarr.json"):
        assert (metadata.parent / "c/0/0/0/0").exists() and (metadata.parent / "thumbnail.npy").exists()


@pytest.mark.slow
def test_a_file_that_cannot_grow_ends_the_run_in_one_sentence(source, undisturbed, tmp_path):
    """A limit on the size of files stands for a full disk: small volumes are written, the larger one is not."""
    root = tmp_path / "store"
    code, _, err = finish(
        source, root, "--workers", 1, limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    )
    _assert_full(code, err, root)
    assert committed(root) < SCANS
    assert resumed(source, root) == undisturbed


@pytest.mark.slow
def test_a_full_disk(source, undisturbed, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        code, _, err = finish(source, disk / "store", "--workers", 2)
        _assert_full(code, err, disk / "store")
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert resumed(source, disk / "store") == undisturbed
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow
def test_a_second_converter_is_told_at_once(source, tmp_path):
    root = tmp_path / "store"
    run = start(source, root, "--workers", 1)
    assert wait_until(lambda: (root / ".writer.json").exists() or run.poll() is not None)
    run.send_signal(signal.SIGSTOP)  # it holds the store as long as the second one takes to start
    code, _, err = finish(source, root, "--workers", 1)
    assert code == 1 and f"store {root} is being written by another ssl3d convert (process {run.pid} on" in err
    run.kill()
    run.communicate()


@pytest.mark.acceptance
def test_twenty_kills_at_random_moments(data, key_of_module, tmp_path):
    """kill -9 of a worker, of a worker's reader or of the run itself, at random moments: 20 of 20 the same store."""
    folder = tmp_path / "in"
    folder.mkdir()
    for file in sorted((data / "Task04_Hippocampus" / "imagesTr").glob("hippo*"))[:40]:
        (folder / file.name).symlink_to(file)
    begun = time.monotonic()
    assert finish(folder, tmp_path / "whole", "--workers", 2)[0] == 0
    whole, seconds = digests(tmp_path / "whole"), time.monotonic() - begun
    dice, victims = random.Random(0), []
    for number in range(20):
        root = tmp_path / f"killed{number}"
        run = start(folder, root, "--workers", 2)
        time.sleep(dice.uniform(0.05, 0.95) * seconds)
        below = descendants(run)
        if below and dice.random() < 0.5:
            victims.append("worker")
            with contextlib.suppress(psutil.NoSuchProcess):
                dice.choice(below).kill()
        else:
            victims.append("run")
            run.kill()
        run.communicate(timeout=600)
        code, _, err = finish(folder, root, "--workers", 2)
        assert code == 0, (number, victims[-1], err)
        assert digests(root) == whole, (number, victims[-1])
        shutil.rmtree(root)
    assert set(victims) == {"worker", "run"}
