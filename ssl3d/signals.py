"""Signals that ask a program to end, and what it says and exits with then. Without torch: they may come at any time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What a scheduler sends before it takes a machine away (SLURM: SIGTERM, or what --signal names), and Ctrl-C.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
)
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "try again later"


class Interrupted(KeyboardInterrupt):
    """A run was asked to end; nothing that it saved is lost, the same command goes on. The message is one sentence."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """75, by which a scheduler requeues; 0 under a sweep agent, which would count a failure; 1 for Ctrl-C."""
        if os.environ.get("WANDB_SWEEP_ID"):
            return 0
        return 1 if self.number == signal.SIGINT else EXIT_CODE


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """A scheduler's signals raise Interrupted within, wherever the program is: while it starts, or waits for others.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}; the same command goes on", number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in SIGNALS if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
