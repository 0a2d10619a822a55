"""Functions that misbehave, importable in a child process."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import numpy as np

from preprocessing import isolation
from preprocessing.refusal import Refusal


def add(a, b):
    return a + b


def own_pid():
    return os.getpid()


def surroundings(name):
    return os.environ.get(name), str(Path.cwd()), os.environ["OMP_NUM_THREADS"]


def segfault():
    ctypes.string_at(0)


def hang():
    time.sleep(600)


def fill(count):
    return int(np.ones(count, np.uint8)[-1])


def leak_once(count, _kept=[]):  # noqa: B006 - the leak is the point: the second call finds the first one's memory taken
    _kept.append(np.ones(count, np.uint8))
    return len(_kept)


def die_if_used(_jobs=[]):  # noqa: B006 - state left behind by an earlier job kills a later one
    _jobs.append(1)
    if len(_jobs) > 1:
        os.abort()
    return len(_jobs)


def fail(text):
    raise ValueError(text)


def refuse():
    raise Refusal("colour")


def own_pid_and_that_of_a_job_of_mine():
    return os.getpid(), isolation.run(os.getpid)


class Unpicklable(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.b = b


def fail_unpicklably():
    raise Unpicklable("first", "second")


def convert_or_misbehave(source, settings):
    """What job.convert_here does, but for sources of some names."""
    from preprocessing import work  # most of these functions need none of it

    if source.id.startswith("segfault"):
        segfault()
    if source.id.startswith("abort"):
        os.abort()
    if source.id.startswith("hang"):
        hang()
    if source.id.startswith("fill"):
        fill(1 << 35)
    if source.id.startswith("series"):
        return _slow_series(work, source, settings)
    return work.convert_here(source, settings)


def _slow_series(work, source, settings):
    """Ends in the middle of a series, each time after one more of its volumes."""
    done = sum(work.is_committed(settings.root, name) for name in source.volume_ids())
    if done == 4:
        return work.convert_here(source, settings)
    frames = source.frames
    source.frames = done + 2  # one frame alone has another id
    work.convert_here(source, settings)
    source.frames = frames
    os.abort()
