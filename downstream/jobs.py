"""Jobs on several processes: each with the same few threads, so that results do not depend on how many there are."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from threadpoolctl import threadpool_limits

from preprocessing.cluster import run_jobs
from ssl3d.data.processes import without_script
from ssl3d.known_warnings import hide_known_warnings
from ssl3d.memory import bounded_freed_memory, keep_freed_memory

Job = TypeVar("Job")


def count_workers(workers: int | Literal["auto"], threads: int, jobs: int) -> int:
    """Processes to use: `auto` fills the CPU cores with `threads` each, or takes one for each GPU."""
    if workers != "auto":
        return max(1, min(workers, jobs))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.cuda.device_count() or cores // threads, jobs))


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Torch and BLAS on `threads` threads: sums are then taken in the same order on every machine and worker count."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


class Pool:
    """Runs `function(shared, job)` for many jobs. `workers` 1 runs them here, one after the other.

    Workers are fresh processes (spawn: neither zarr nor CUDA survives a fork) and die with their parent. With a
    `scheduler` (address) they are those of a dask cluster, that sees the same files: one job a worker thread, so start
    its workers with --nthreads 1, and each with a GPU of its own (CUDA_VISIBLE_DEVICES).
    """

    def __init__(
        self,
        function: Callable[[Any, Any], None],
        shared: Any,
        workers: int,
        threads: int,
        scheduler: str | None = None,
    ) -> None:
        self.function, self.shared, self.threads, self.scheduler = function, shared, threads, scheduler
        self.executor: ProcessPoolExecutor | None = None
        self._open = contextlib.ExitStack()
        if workers > 1 and scheduler is None:
            spawn = multiprocessing.get_context("spawn")
            number = spawn.Value("i", 0)
            arguments = (function, shared, threads, number, torch.cuda.device_count())
            self.executor = ProcessPoolExecutor(workers, spawn, initializer=_start, initargs=arguments)

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield each job as it is done. Raises the first exception of a job; those not begun are dropped.

        Raises ValueError when a worker is killed, when there is no dask scheduler at the address, or when its workers
        die of a job.
        """
        if self.scheduler is not None:
            remote = functools.partial(_run_there, self.function, self.shared, self.threads, str(Path.cwd()))
            for number, _ in run_jobs(remote, jobs, _died, 0, self.scheduler):
                yield jobs[number]
            return
        if self.executor is None:
            for job in jobs:
                with limited_threads(self.threads), bounded_freed_memory():
                    self.function(self.shared, job)
                yield job
            return
        futures = {self.executor.submit(_run, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool:
            raise ValueError(
                "a worker was killed by the system, most often for lack of memory: what is finished is kept, so run "
                "the same command again, with fewer workers"
            ) from None
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def __enter__(self) -> Pool:
        self._open.enter_context(without_script())
        return self

    def __exit__(self, *_: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)
        self._open.close()


_state: dict[str, Any] = {}


def _start(function: Callable[[Any, Any], None], shared: Any, threads: int, number: Any, gpus: int) -> None:
    """A worker's beginning: its GPU, its threads, what it does not say, and a watch on its parent."""
    hide_known_warnings()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if gpus:
        with number.get_lock():
            os.environ["CUDA_VISIBLE_DEVICES"] = _visible(number.value % gpus)
            number.value += 1
    keep_freed_memory()  # a third of the time of a probe went into page faults
    torch.set_num_threads(threads)
    memory = contextlib.ExitStack()  # as long as the process
    memory.enter_context(bounded_freed_memory())
    _state.update(function=function, shared=shared, limits=threadpool_limits(threads), memory=memory)


def _visible(number: int) -> str:
    """The name of the GPU with this number among those this process may use."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return allowed.split(",")[number] if allowed else str(number)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        sys.stderr.flush()
        os._exit(1)  # a killed evaluation must not leave trainings behind that write into its directory


def _run_there(function: Callable[[Any, Any], None], shared: Any, threads: int, folder: str, job: Any) -> None:
    """A job on a worker of a cluster, whose paths are relative to where the evaluation was started."""
    with contextlib.chdir(folder), limited_threads(threads), bounded_freed_memory():
        function(shared, job)


def _died(job: Any, refusal: Any) -> None:
    raise ValueError(f"scheduler: worker after worker died of {job}: look into their logs, for memory first")


def _run(job: Any) -> None:
    _state["function"](_state["shared"], job)
