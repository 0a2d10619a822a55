"""Run one function over many jobs: in this process, on a local dask cluster, or on the user's scheduler."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from preprocessing.refusal import Refusal

Job = TypeVar("Job")
Result = TypeVar("Result")
_IN_FLIGHT = 4  # jobs submitted ahead, a worker
_PR_SET_PDEATHSIG = 1
_DISTRIBUTED_LOGGERS = ("distributed", "distributed.worker", "distributed.nanny", "distributed.scheduler")


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def die_with_parent() -> None:
    """Make this process end when its parent does, a kill -9 of the parent included.

    On Linux the kernel sees to it; a thread that looks for the parent does everywhere.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="die-with-parent").start()


def dask_setup(worker: Any) -> None:
    """What a local worker runs when it starts: dask finds it by this name, this module being its preload."""
    del worker
    die_with_parent()


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    on_death: Callable[[Job, Refusal], Result],
    workers: int,
    scheduler: str | None,
) -> Iterator[tuple[int, Result]]:
    """(job number, result) as jobs end, in any order.

    A job whose process dies again and again yields `on_death` of it; an exception of the function ends the run.
    Raises ValueError when the scheduler cannot be reached.
    """
    if scheduler is None and min(workers, len(jobs)) <= 1:
        for number, job in enumerate(jobs):
            yield number, function(job)
        return
    with contextlib.ExitStack() as stack:
        client = _connect(stack, min(workers, len(jobs)), scheduler)
        yield from _stream(client, function, jobs, on_death)


def _connect(stack: contextlib.ExitStack, workers: int, scheduler: str | None) -> Any:
    """A dask client, whose cluster (when it is ours) closes with the stack."""
    import dask
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            return stack.enter_context(Client(scheduler, timeout="20s"))
        except (OSError, TimeoutError, ValueError) as error:
            raise ValueError(
                f"--scheduler {scheduler} cannot be reached: is a dask scheduler running there?"
            ) from error
    for name in _DISTRIBUTED_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    stack.enter_context(dask.config.set({"distributed.admin.system-monitor.gil.enabled": False}))
    cluster = stack.enter_context(
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,  # numpy and scipy in a worker run on one thread: the same bytes every time
            processes=True,
            memory_limit=0,  # a pause or a restart in the middle of a large scan would only lose it
            dashboard_address="127.0.0.1:0",  # any free port: 8787 may be another run's
            silence_logs=logging.CRITICAL,
            preload=["preprocessing.cluster"],
        )
    )
    return stack.enter_context(Client(cluster))


def _stream(
    client: Any, function: Callable[[Job], Result], jobs: Sequence[Job], on_death: Callable[[Job, Refusal], Result]
) -> Iterator[tuple[int, Result]]:
    """Submit a few jobs ahead, yield results as they come, and let go of each future at once."""
    from distributed import KilledWorker, as_completed

    numbers: dict[str, int] = {}
    waiting = iter(enumerate(jobs))
    running = as_completed()

    def submit_next() -> bool:
        item = next(waiting, None)
        if item is None:
            return False
        future = client.submit(function, item[1], pure=False)
        numbers[future.key] = item[0]
        running.add(future)
        return True

    ahead = max(1, sum(client.nthreads().values())) * _IN_FLIGHT
    while ahead > 0 and submit_next():
        ahead -= 1
    for future in running:
        number = numbers.pop(future.key)
        try:
            result = future.result()
        except KilledWorker:
            result = on_death(jobs[number], Refusal("worker_died"))
        future.release()
        submit_next()
        yield number, result
