"""One converter at a time in a store: who holds it, and a token by which its workers see that it still does.

On a disk the kernel's own lock on `.lock` decides; it goes with the process, however that ends. Behind a URL there is
no such thing: `.writer.json` itself is the lock, made only if there is none, renewed while its owner lives, and free
again when it has not been renewed for two minutes (or when its owner was on this machine and is gone). A worker looks
at the token before it commits a volume: one that outlived its run cannot meddle with the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import psutil
from filelock import FileLock, Timeout

from ssl3d.data import format as fmt
from ssl3d.data.objects import LocalObjects, Objects, StoreError, cannot_write, open_objects

RENEW_S = 20.0
STALE_S = 120.0
_SETTLE_S = 1.0  # after taking over what nobody renews: time for another one who does the same to be seen


@dataclass(frozen=True)
class Holder:
    """Who converts into a store: a token of the run, where it runs, since when, when last heard of (epoch seconds).

    Only a lock behind a URL is renewed.
    """

    token: str
    host: str
    process: int
    since: float
    seen: float

    def gone(self) -> bool:
        """Whether nobody can be behind it any more."""
        if self.host == socket.gethostname() and not psutil.pid_exists(self.process):
            return True
        return time.time() - self.seen > STALE_S

    def described(self) -> str:
        """In words."""
        now = time.time()
        heard = f", last heard of {max(0.0, now - self.seen):.0f} s ago" if self.seen > self.since else ""
        return f"process {self.process} on {self.host}, begun {max(0.0, now - self.since):.0f} s ago{heard}"


def holder_of(objects: Objects) -> Holder | None:
    """Who holds a store, or held it when he was killed; None when nobody does."""
    try:
        return Holder(**json.loads(objects.get(fmt.WRITER_FILE)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def confirm(root: str, token: str) -> None:
    """Raises StoreError when the run of this token does not hold the store (any more)."""
    holder = holder_of(open_objects(root))
    if holder is None or holder.token != token:
        raise StoreError(f"store {root} is no longer held by the run that this worker belongs to: its work is dropped")


def check_free(root: str) -> None:
    """Raises ValueError at once when another converter holds the store; makes nothing, and holds nothing."""
    objects = open_objects(root)
    if not isinstance(objects, LocalObjects):
        holder = holder_of(objects)
        if holder is not None and not holder.gone():
            raise _in_use(objects, holder)
    elif objects.exists(fmt.LOCK_FILE):
        with _file_lock(objects):
            pass


@contextlib.contextmanager
def exclusive(root: str) -> Iterator[str]:
    """Hold the store at `root`, whose folder is made if need be; gives the token of this run.

    Raises ValueError at once, naming who holds it, when another converter does; StoreError when nothing can be written.
    """
    objects = open_objects(root)
    with contextlib.ExitStack() as stack:
        now = time.time()
        own = Holder(secrets.token_hex(8), socket.gethostname(), os.getpid(), now, now)
        if isinstance(objects, LocalObjects):
            stack.enter_context(_file_lock(objects))
            objects.put(fmt.WRITER_FILE, _encoded(own))
        else:
            _claim(objects, own)
            stack.enter_context(_renewed(objects, own))
        try:
            yield own.token
        finally:
            with contextlib.suppress(StoreError):
                if (holder := holder_of(objects)) is not None and holder.token == own.token:
                    objects.remove(fmt.WRITER_FILE)


def _encoded(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _in_use(objects: Objects, holder: Holder | None) -> ValueError:
    who = f" ({holder.described()})" if holder is not None else ""
    return ValueError(
        f"store {objects.root} is being written by another ssl3d convert{who}: wait until it has ended, or choose"
        " another store"
    )


@contextlib.contextmanager
def _file_lock(objects: LocalObjects) -> Iterator[None]:
    try:
        objects.path("").mkdir(parents=True, exist_ok=True)
        lock = FileLock(objects.path(fmt.LOCK_FILE))
        lock.acquire(timeout=0)
    except Timeout as error:
        raise _in_use(objects, holder_of(objects)) from error
    except OSError as error:
        raise cannot_write(objects.root, error) from error
    try:
        yield
    finally:
        lock.release()


def _claim(objects: Objects, own: Holder) -> None:
    """Write the lock object if there is none, or none that anybody is behind."""
    for _ in range(3):
        if objects.put_new(fmt.WRITER_FILE, _encoded(own)):
            return
        holder = holder_of(objects)
        if holder is None:
            continue  # it went this moment
        if not holder.gone():
            raise _in_use(objects, holder)
        objects.put(fmt.WRITER_FILE, _encoded(own))
        time.sleep(_SETTLE_S)
        if holder_of(objects) == own:
            return
    raise _in_use(objects, holder_of(objects))


@contextlib.contextmanager
def _renewed(objects: Objects, own: Holder) -> Iterator[None]:
    """Keep saying that this run is alive; stop as soon as the store is another's."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_S):
            with contextlib.suppress(StoreError):  # the next renewal may come through, and there is time for a few
                holder = holder_of(objects)
                if holder is None or holder.token != own.token:
                    return
                objects.put(fmt.WRITER_FILE, _encoded(replace(own, seen=time.time())))

    thread = threading.Thread(target=renew, daemon=True, name="ssl3d-lock")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
