"""Work that is killed by SIGKILL in front of every change it makes to files, one after the other."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import count

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree"}


def deaths(work: Callable[[], object], every: int = 1) -> Iterator[int]:
    """Run `work` in a child that dies in front of its first change, in front of its second, ...: yields after each
    death how many changes were made, and ends when the work does. The caller puts the files back in between.

    `every`: die in front of every nth change only.
    """
    for changes in count(0, every):
        child = os.fork()
        if not child:
            _die(work, changes)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0, "the work itself failed; see above"
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
        yield changes


def _die(work: Callable[[], object], after: int) -> None:
    left = after

    def watch(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in _CHANGES or (event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    code = 1
    try:
        sys.addaudithook(watch)
        work()
        code = 0
    except Exception:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(code)
