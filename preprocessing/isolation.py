"""Run a function in a child process that may die, hang or outgrow its memory without taking the run with it.

Each thread has one child, started on first use and kept: a call costs a message each way. The child is a fresh
interpreter (no fork of a process with threads, no second run of the user's script) that sees the same working
directory, environment and import path. It ends with its parent, a kill -9 of the parent included. Numeric libraries in
it use one thread, so that a scan becomes the same bytes however many workers there are.

A verdict is only passed by a child that has done nothing else before: one that dies or runs out of memory after other
jobs is replaced and the job repeated, so that no file is blamed for what an earlier one left behind.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar

from preprocessing.cluster import die_with_parent
from preprocessing.refusal import Refusal

Result = TypeVar("Result")
_Surroundings = tuple[str, dict[str, str], list[str]]  # working directory, environment, import path
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from preprocessing.isolation import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)
_READY = b"ready"
_BEGUN = b"begun"  # the job's own modules are imported: its time begins
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "cannot allocate memory", "can't allocate memory",
                  "failed to allocate", "unable to allocate", "out of memory")  # fmt: skip
_OOM_SCORE = "500"  # when memory ends, the kernel takes the child before anything else of the run
_PATIENCE_S = 120.0  # for an interpreter to start on a busy machine
_own = threading.local()
_serving = False


def run(
    function: Callable[..., Result],
    *arguments: Any,
    timeout_s: float | None = None,
    memory_bytes: int | None = None,
    imports: str = "",
) -> Result:
    """function(*arguments), computed in the calling thread's child; function, arguments and result are pickled.

    `imports`: a module that the child imports before time and memory are counted. `memory_bytes`: what the job may take
    beyond what the child has; the kernel holds it to that on Linux, nobody elsewhere. In a child itself the function is
    simply called. Raises what the function raises, and Refusal `worker_died` (naming the signal),
    `timed_out` or `too_large`.
    """
    if _serving:
        return function(*arguments)
    child = _child()
    while True:
        fresh = child.jobs == 0
        try:
            return child.call(pickle.dumps((function, arguments)), imports, timeout_s, memory_bytes)
        except MemoryError as error:
            child.end()
            if fresh:
                limit = "" if memory_bytes is None else f" {memory_bytes / 2**30:.3g} GiB"
                raise Refusal("too_large", f"it needs more memory than the{limit} that one scan may take") from error
        except _ChildDied as death:
            if fresh:
                raise Refusal("worker_died", str(death)) from death
        child = _child()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, in whatever words its library has for it."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def end_child() -> None:
    """End the calling thread's child, if it has one; the next call starts another."""
    child: _Child | None = getattr(_own, "child", None)
    if child is not None:
        child.end()


class _ChildDied(Exception):
    """The child ended in the middle of a job; the text says by what."""


def _child() -> _Child:
    """The calling thread's child, alive."""
    child: _Child | None = getattr(_own, "child", None)
    if child is None or not child.alive():
        child = _own.child = _Child()
    return child


def _surroundings() -> _Surroundings:
    """(working directory, environment, import path) that a child must share with its parent."""
    return str(Path.cwd()), {**os.environ, **_ONE_THREAD}, [str(Path(entry).absolute()) for entry in sys.path]


class _Child:
    """One child process and the pipe to it. `jobs`: how many it has been given."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        self._told = _surroundings()
        command = [sys.executable, "-c", _BOOT, json.dumps(self._told[2]), str(theirs.fileno()), str(os.getpid())]
        self.process = subprocess.Popen(
            command, env=self._told[1], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        theirs.close()
        self.jobs = 0
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _stop, self.process, self.connection, self._owner)
        if not (self.connection.poll(_PATIENCE_S) and self._first_word() == _READY):
            self.end()
            raise RuntimeError("the child process that reads files could not be started")

    def _first_word(self) -> bytes:
        try:
            return self.connection.recv_bytes()
        except (EOFError, OSError):
            return b""

    def alive(self) -> bool:
        """Whether it can be given a job; one inherited through a fork cannot, it is another process's."""
        return os.getpid() == self._owner and self._finalizer.alive and self.process.poll() is None

    def end(self) -> None:
        """Kill it and close the pipe."""
        self._finalizer()

    def call(self, job: bytes, imports: str, timeout_s: float | None, memory: int | None) -> Any:
        """One job, a pickled (function, arguments).

        Raises what it raised, _ChildDied, or Refusal `timed_out`; only the first leaves the child alive.
        """
        around = _surroundings()
        changed = around if around != self._told else None
        self.jobs += 1
        try:
            self.connection.send((changed, imports, memory, job))
            answered = self.connection.poll(_PATIENCE_S) and self.connection.recv_bytes() == _BEGUN
            answered = answered and self.connection.poll(timeout_s)
            outcome: tuple[bool, Any] = self.connection.recv() if answered else (False, _timed_out(timeout_s))
        except (EOFError, OSError) as error:
            raise _ChildDied(self._cause()) from error
        except BaseException:  # an interrupt in the middle of a job: its answer must not be taken for the next one's
            self.end()
            raise
        if not answered:
            self.end()
        self._told = around
        if outcome[0]:
            return outcome[1]
        raise outcome[1]

    def _cause(self) -> str:
        """What ended it, in words."""
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = 0  # it closed the pipe and lives on
        self.end()
        if code >= 0:
            return f"the process that read it ended by itself (exit code {code})"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        out_of_memory = ", probably out of memory" if -code == signal.SIGKILL else ""
        return f"the process that read it was ended by {name}{out_of_memory}"


def _timed_out(timeout_s: float | None) -> Refusal:
    return Refusal("timed_out", f"it was not done after {timeout_s or _PATIENCE_S:g} seconds")


def _stop(process: subprocess.Popen[bytes], connection: Connection, owner: int) -> None:
    """End a child, from the process that started it only."""
    if os.getpid() != owner:
        return
    connection.close()
    process.kill()
    process.wait()


def serve(descriptor: int, parent: int) -> None:
    """The child's life: answer jobs until the parent closes the pipe or is gone."""
    global _serving
    _serving = True
    os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to decide
    die_with_parent()
    if os.getppid() != parent:
        return
    _go_first()
    connection = Connection(descriptor)
    connection.send_bytes(_READY)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # C libraries complain of a broken file here; what matters comes back as an exception
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            return
        connection.send_bytes(_answer(connection, *message))


def _go_first() -> None:
    """Write no core file, and be what the kernel ends when memory ends."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    score = Path("/proc/self/oom_score_adj")
    if score.exists() and os.access(score, os.W_OK):
        score.write_text(_OOM_SCORE)


def _answer(
    connection: Connection, around: _Surroundings | None, imports: str, memory: int | None, job: bytes
) -> bytes:
    """(True, result) or (False, exception), pickled; says when the job itself begins."""
    begun = False
    try:
        if around is not None:
            _move_to(*around)
        function, arguments = pickle.loads(job)
        if imports:
            importlib.import_module(imports)
        connection.send_bytes(_BEGUN)
        begun = True
        _limit_memory(memory)
        return pickle.dumps((True, function(*arguments)))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent raises it
        _limit_memory(None)
        if not begun:
            connection.send_bytes(_BEGUN)
        return _failure(error)


def _failure(error: BaseException) -> bytes:
    """(False, exception) with the child's traceback as a note; a RuntimeError where it does not survive pickling."""
    if is_out_of_memory(error) and not isinstance(error, Refusal):
        return pickle.dumps((False, MemoryError(str(error))))
    if not isinstance(error, Refusal):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        answer = pickle.dumps((False, error))
        pickle.loads(answer)
    except Exception:  # noqa: BLE001 - an exception class may do anything when pickled; its text is what counts
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return answer


def _move_to(folder: str, environment: dict[str, str], path: list[str]) -> None:
    """Take over the parent's working directory, environment and import path."""
    os.chdir(folder)
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    sys.path[:] = path


def _limit_memory(extra: int | None) -> None:
    """Let this process map `extra` bytes of data more than it has now; None: no limit. Linux only."""
    status = Path("/proc/self/status")
    if not status.exists():
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if extra is None:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        return
    data = next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmData"))
    limit = data + extra
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
