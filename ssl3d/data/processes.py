"""Child processes that do not run the caller's script again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_script() -> Iterator[None]:
    """Processes started meanwhile leave the script that Python was started with alone.

    A new process imports that script to find the functions it is to call. Ours lie in modules, and a script of five
    lines, without `if __name__ == "__main__"`, would begin from its start in every child.
    """
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or getattr(main, "__spec__", None) is not None:  # interactive, or python -m
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = file
