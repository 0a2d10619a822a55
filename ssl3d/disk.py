"""A full disk stops nobody at once: what has to be written waits for room, and says so."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ssl3d.terminal import say

Result = TypeVar("Result")

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
TRY_SECONDS = 10.0  # between two attempts
WAIT_SECONDS = 3600.0  # until it is given up; where other ranks wait they would give up themselves before
WAIT_SECONDS_OF_MANY = 480.0  # NCCL's limit is 600


class DiskFull(OSError):
    """There was no room within the time that is waited for it; one sentence with the remedy."""


def when_there_is_room(
    write: Callable[[], Result],
    folder: Path,
    stop: Callable[[], bool] = lambda: False,
    patience: float = WAIT_SECONDS,
) -> Result:
    """Call `write`, again and again while the disk is full; one sentence says that it waits, one that it goes on.

    Raises DiskFull after `patience` seconds or once `stop` says so, and any other error at once.
    """
    since = None
    while True:
        try:
            result = write()
        except OSError as error:
            if error.errno not in FULL:
                raise
            if since is None:
                since = time.monotonic()
                say(f"{folder}: the disk is full; free some space and it goes on, it tries every {TRY_SECONDS:g} s")
            if not _wait(since + patience, stop):
                raise DiskFull(
                    f"{folder}: the disk is full, nothing more was written; what was saved before is kept: free some "
                    "space, then run the same command again"
                ) from error
        else:
            if since is not None:
                say(f"{folder}: there is room again, going on")
            return result


def _wait(deadline: float, stop: Callable[[], bool]) -> bool:
    """Sleep until the next attempt; False when there is to be none."""
    until = time.monotonic() + TRY_SECONDS
    while (now := time.monotonic()) < until:
        if stop() or now >= deadline:
            return False
        time.sleep(min(0.5, until - now))
    return True
