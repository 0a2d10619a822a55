"""Writes checkpoints beside the training: a step waits for a copy in memory, never for the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ssl3d import checkpoint
from ssl3d.disk import WAIT_SECONDS, when_there_is_room
from ssl3d.snapshot import Snapshot


class CheckpointWriter:
    """Takes snapshots and writes them in a thread, one at a time, each whole before the next is taken.

    `stop`: asked while the disk is full, ends the waiting; so do `patience` seconds. Training goes on beside it until
    the next checkpoint is due. A failed write is raised where the next one is asked for, or by `close`.
    """

    def __init__(self, run: Path, stop: Callable[[], bool], patience: float = WAIT_SECONDS) -> None:
        self._run, self._patience, self._closing = run, patience, False
        self._asked = stop
        self._snapshot = Snapshot()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ssl3d-checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, content: Mapping[str, Any], wait: bool = False, best: bool = False) -> None:
        """Save `content` as it is now, the last or the best; back when it is copied, or with `wait` on the disk.

        Raises what the write before raised: OSError with one sentence when the disk stayed full.
        """
        self.wait()
        taken = self._snapshot.take(content)
        self._writing = self._pool.submit(self._write, taken, best)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return once nothing is being written. Raises what the write raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Finish what is being written; waits no longer for room on a full disk. Raises what the write raised."""
        self._closing = True
        self._pool.shutdown(wait=True)
        self.wait()

    def _write(self, content: Mapping[str, Any], best: bool) -> Path:
        def stop() -> bool:
            return self._closing or self._asked()

        return when_there_is_room(lambda: checkpoint.save(self._run, content, best), self._run, stop, self._patience)
