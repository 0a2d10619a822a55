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
from itertools import islice
from typing import Any, TypeVar

from preprocessing.refusal import Refusal
from ssl3d.data.processes import without_script

Job = TypeVar("Job")
Result = TypeVar("Result")
_IN_FLIGHT = 4  # jobs submitted ahead, a worker
_ANSWER_S = 20.0  # for a scheduler to answer
_WORKERS_S = 60.0  # for its first worker to come
_PR_SET_PDEATHSIG = 1
_DISTRIBUTED_LOGGERS = ("distributed", "distributed.worker", "distributed.nanny", "distributed.scheduler")


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
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides


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

    for name in _DISTRIBUTED_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if scheduler is not None:
        return _join(stack, scheduler)
    stack.enter_context(without_script())  # while the cluster lives: it replaces workers that die
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


def _join(stack: contextlib.ExitStack, scheduler: str) -> Any:
    """A client of the user's own scheduler. Raises ValueError when nobody answers, or there is no worker."""
    from distributed import Client

    try:
        client = stack.enter_context(Client(scheduler, timeout=f"{_ANSWER_S:g}s"))
    except (OSError, TimeoutError, ValueError) as error:
        raise ValueError(f"--scheduler {scheduler} cannot be reached: is a dask scheduler running there?") from error
    try:
        client.wait_for_workers(1, timeout=_WORKERS_S)
    except TimeoutError as error:
        raise ValueError(
            f"--scheduler {scheduler} has no workers after {_WORKERS_S:g} s: start some with dask worker {scheduler}"
        ) from error
    return client


def _stream(
    client: Any, function: Callable[[Job], Result], jobs: Sequence[Job], on_death: Callable[[Job, Refusal], Result]
) -> Iterator[tuple[int, Result]]:
    """Submit a few jobs ahead, yield results as they come, and let go of each future at once."""
    from distributed import KilledWorker, as_completed

    numbers: dict[str, int] = {}
    waiting = iter(enumerate(jobs))
    running = as_completed()

    def fill() -> None:
        """A few jobs ahead for every worker there is now: workers of a cluster come and go."""
        ahead = max(1, sum(client.nthreads().values())) * _IN_FLIGHT
        for number, job in islice(waiting, max(0, ahead - len(numbers))):
            future = client.submit(function, job, pure=False)
            numbers[future.key] = number
            running.add(future)

    fill()
    for future in running:
        number = numbers.pop(future.key)
        try:
            result = future.result()
        except KilledWorker:
            result = on_death(jobs[number], Refusal("worker_died"))
        future.release()
        fill()
        yield number, result
