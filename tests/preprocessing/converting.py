"""Conversions in processes of their own, to be killed, starved or stopped, and digests of what they leave."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
from tests_prep import oblique, save, smooth

from ssl3d.data import format as fmt

CHECKOUT = Path(__file__).parents[2]


def command(*arguments: str | Path) -> list[str]:
    """`ssl3d convert` with these arguments."""
    return [sys.executable, "-m", "ssl3d", "convert", *map(str, arguments)]


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    """What a test that failed has started is ended."""
    yield
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def start(*arguments: str | Path, limit: Callable[[], None] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start `ssl3d convert`; its output can be read from the process. `limit` is called in it before it begins."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that were started in the background ignore it
        if limit is not None:
            limit()

    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=prepare, **options,
    )  # fmt: skip
    _started.append(process)
    return process


def finish(*arguments: str | Path, **options: Any) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a whole `ssl3d convert`."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def digests(root: str | Path) -> dict[str, str]:
    """{key: digest} of every object of a store, on a disk or behind a URL; the lock file aside, which holds nothing."""
    filesystem, base = fsspec.core.url_to_fs(str(root), use_listings_cache=False)
    found = {path.removeprefix(base).strip("/"): filesystem.cat_file(path) for path in filesystem.find(base)}
    return {key: hashlib.blake2b(data).hexdigest() for key, data in found.items() if key != fmt.LOCK_FILE}


def scans(folder: Path, count: int, side: int = 40) -> Path:
    """`count` small scans, each its own shape, content and orientation, and one file that is refused."""
    for number in range(count):
        shape = (side + number % 5, side - number % 3, side // 2 + number % 4)
        save(folder / f"scan_{number:02d}.nii.gz", smooth(shape, number), oblique((0.9, 1.2, 2.0), 3.0 * number))
    (folder / "empty.nii.gz").write_bytes(b"")
    return folder


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All processes below one, that live."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until(condition: Callable[[], bool], seconds: float = 240.0) -> bool:
    """Whether a condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def committed(root: str | Path) -> int:
    """Volumes in a store on a disk."""
    return len(list(Path(root).glob("volumes/*/zarr.json")))
