"""Who reads the samples of a loader: the calling thread, threads or processes, behind one interface."""

from __future__ import annotations

import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Protocol

import numpy as np

from ssl3d.data.processes import without_script
from ssl3d.data.reading import RegionReader
from ssl3d.data.sampling import Sample
from ssl3d.regions import Size3

_log = logging.getLogger(__name__)
CLOSE_SECONDS = 5.0  # how long a process may take to end by itself
MAX_DEATHS = 4  # of workers, one after the other, before it is no accident


@dataclass
class Target:
    """Where a sample's voxels go: views into a batch, (C,D,H,W) int16, (1,D,H,W) int64 and (1,D,H,W) bool."""

    image: np.ndarray
    label: np.ndarray | None
    valid: np.ndarray | None


class Pool(Protocol):
    """Reads samples concurrently. `begin` returns at once with a function that waits until the sample is read."""

    def begin(self, sample: Sample, target: Target) -> Callable[[], Any]:
        """Start reading `sample` into `target`; the returned function waits and raises what the reader raised."""

    def close(self) -> None:
        """Stop the workers and free what they hold. May be called twice."""


class Inline:
    """No workers: a sample is read when it is waited for."""

    def __init__(self, reader: RegionReader) -> None:
        self.reader = reader

    def begin(self, sample: Sample, target: Target) -> Callable[[], Any]:
        return lambda: self.reader.read(sample, target.image, target.label, target.valid)

    def close(self) -> None:
        pass


class Threads:
    """Threads of this process: decoding releases the GIL, voxels go straight into the batch."""

    def __init__(self, reader: RegionReader, workers: int) -> None:
        self.reader = reader
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="ssl3d-reader")

    def begin(self, sample: Sample, target: Target) -> Callable[[], Any]:
        future: Future[None] = self._executor.submit(self.reader.read, sample, target.image, target.label, target.valid)
        return future.result

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


class Slots:
    """A shared memory block of `n` slots, each the voxels of one sample."""

    def __init__(self, n: int, channels: int, size: Size3, label: bool, name: str | None = None) -> None:
        self.arguments = (n, channels, size, label)
        shapes = {
            "image": ((n, channels, *size), np.dtype(np.int16)),
            "label": ((n if label else 0, 1, *size), np.dtype(np.uint16)),
            "valid": ((n, 1, *size), np.dtype(np.bool_)),
        }
        total = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in shapes.values())
        self._memory = SharedMemory(name=name, create=name is None, size=total)
        self.name, self._owner = self._memory.name, name is None
        self._arrays: dict[str, np.ndarray] = {}
        offset = 0
        for key, (shape, dtype) in shapes.items():
            self._arrays[key] = np.ndarray(shape, dtype, self._memory.buf, offset)
            offset += self._arrays[key].nbytes

    def target(self, slot: int, label: bool, valid: bool) -> Target:
        """The views of a slot."""
        a = self._arrays
        return Target(a["image"][slot], a["label"][slot] if label else None, a["valid"][slot] if valid else None)

    def close(self) -> None:
        self._arrays = {}
        self._memory.close()
        if self._owner:
            self._memory.unlink()
            self._owner = False


class Processes:
    """Forkserver processes that read into shared memory; the caller copies each sample into its batch.

    A reader's cache is divided among them, and two may keep the same volume: threads, which share one, use it better.
    `ahead`: samples that may be begun and not yet waited for; so many slots there are.
    A worker that dies (killed, out of memory) is replaced, and reads anew what it had not finished; when that happens
    MAX_DEATHS times without a sample read in between, the caller gets RuntimeError and never waits in vain.
    """

    def __init__(self, reader: RegionReader, workers: int, ahead: int, channels: int, label: bool) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["ssl3d.data.workers"])
        self._reader = copy(reader)
        self._reader.cache = None if reader.cache is None else reader.cache.share(workers)
        self._slots = Slots(ahead, channels, reader.size, label)
        self._free = deque(range(ahead))
        self._done: dict[int, BaseException | None] = {}
        self._asked: dict[int, tuple[int, tuple[Sample, bool, bool]]] = {}  # slot -> its worker, what was asked of it
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self._turn = self._deaths = 0
        try:
            for number in range(workers):
                process, connection = self._start(number)
                self._processes.append(process)
                self._connections.append(connection)
        except BaseException:
            self.close()
            raise

    def _start(self, number: int) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self._reader, self._slots.name, self._slots.arguments)
        process = self._context.Process(target=_serve, args=arguments, name=f"ssl3d-reader-{number}", daemon=True)
        with without_script():
            process.start()
        theirs.close()  # so that the end of the worker is seen as the end of its pipe
        return process, ours

    def begin(self, sample: Sample, target: Target) -> Callable[[], Any]:
        slot = self._free.popleft()  # the loader begins no more samples than there are slots
        worker = self._turn % len(self._connections)
        self._turn += 1
        self._asked[slot] = worker, (sample, target.label is not None, target.valid is not None)
        self._ask(slot)
        return lambda: self._finish(slot, target)

    def _ask(self, slot: int) -> None:
        worker, what = self._asked[slot]
        try:
            self._connections[worker].send((slot, *what))
        except (BrokenPipeError, ConnectionResetError):
            self._replace(worker)  # which asks for everything that is not there

    def _finish(self, slot: int, target: Target) -> None:
        while slot not in self._done:
            for ready in wait(self._connections):
                assert isinstance(ready, Connection)
                self._receive(self._connections.index(ready))
        error = self._done.pop(slot)
        if error is not None:
            self._free.append(slot)
            raise error
        source = self._slots.target(slot, target.label is not None, target.valid is not None)
        target.image[...] = source.image
        if target.label is not None:
            target.label[...] = source.label
        if target.valid is not None:
            target.valid[...] = source.valid
        self._free.append(slot)

    def _receive(self, worker: int) -> None:
        """Take in one answer of a worker that has one, or replace it when it has died."""
        try:
            slot, error = self._connections[worker].recv()
        except (EOFError, ConnectionResetError):
            self._replace(worker)
            return
        self._deaths = 0
        self._done[slot] = error
        del self._asked[slot]

    def _replace(self, worker: int) -> None:
        """A new process in the place of a dead one; what the old one had answered before is kept."""
        process, connection = self._processes[worker], self._connections[worker]
        with suppress(EOFError, ConnectionResetError):
            while connection.poll():
                slot, error = connection.recv()
                self._done[slot] = error
                del self._asked[slot]
        process.join(CLOSE_SECONDS)
        self._deaths += 1
        code = process.exitcode
        if self._deaths >= MAX_DEATHS:
            raise RuntimeError(
                f"loader processes ended unexpectedly {MAX_DEATHS} times in a row (exit code {code}); -9 is most often "
                "the system out of memory: lower data.workers or data.batch_size"
            )
        _log.warning("loader process %s ended unexpectedly (exit code %s): another one takes its place",
                     process.name, code)  # fmt: skip
        connection.close()
        process.close()
        self._processes[worker], self._connections[worker] = self._start(worker)
        for slot in [s for s, (owner, _) in self._asked.items() if owner == worker]:
            self._ask(slot)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()  # a worker ends when its pipe does
        for process in self._processes:
            process.join(CLOSE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._connections, self._processes = [], []
        self._slots.close()


def _serve(connection: Connection, reader: RegionReader, name: str, arguments: Sequence[Any]) -> None:
    """The life of a worker process: read the samples that come through the pipe, until it is closed."""
    n, channels, size, label = arguments
    slots = Slots(n, channels, size, label, name)
    try:
        while True:
            slot, sample, with_label, with_valid = connection.recv()
            connection.send((slot, _read(reader, sample, slots, slot, with_label, with_valid)))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass  # the parent closed the pipe, ended, or was interrupted
    finally:
        slots.close()


def _read(reader: RegionReader, sample: Sample, slots: Slots, slot: int, label: bool, valid: bool) -> Exception | None:
    """Read a sample into a slot; what the reader raises is returned, to be raised in the parent."""
    target = slots.target(slot, label, valid)
    try:
        reader.read(sample, target.image, target.label, target.valid)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        error.__cause__ = None  # it may not be picklable; the message names the volume
        return error.with_traceback(None)
    return None
