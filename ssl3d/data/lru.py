"""A bounded cache of what is expensive to open, safe among threads and after a fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRU(Generic[Key, Value]):
    """Keeps the `capacity` most recently used values; what falls out is closed by its last reference."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()
        _caches.add(self)

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of `key`, made when it is not there. Two threads may both make it; one of them is kept."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
                return value
        made = make()  # outside the lock: opening one volume must not hold up the others
        with self._lock:
            value = self._values.setdefault(key, made)
            self._values.move_to_end(key)
            while len(self._values) > self.capacity:
                self._values.popitem(last=False)
        return value

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()

    def __len__(self) -> int:
        return len(self._values)

    def __getstate__(self) -> int:
        return self.capacity

    def __setstate__(self, capacity: int) -> None:
        self.__init__(capacity)  # type: ignore[misc]  # a cache travels to another process empty


_caches: weakref.WeakSet[LRU] = weakref.WeakSet()


def _renew_locks() -> None:
    """A forked child may inherit a lock that another thread of its parent held: it gets new ones."""
    for cache in _caches:
        cache._lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_locks)
