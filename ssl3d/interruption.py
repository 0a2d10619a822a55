"""Signals that ask a run to end: it finishes its step, saves, and goes on when the same command is run again."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch

from ssl3d.fabric import Fabric
from ssl3d.signals import SIGNALS


class Interruption:
    """As a context manager, notes the first signal and lets the second Ctrl-C through; `seen` asks all ranks.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._number = 0
        self._before: dict[int, Any] = {}
        # The ranks agree between two steps over the CPU's network: waiting for a GPU would cost every step.
        self._group = torch.distributed.new_group(backend="gloo") if fabric.world_size > 1 else None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether this process has got a signal."""
        return self._number != 0

    def seen(self) -> int:
        """The signal that any rank has got, the same answer on all of them; 0 for none."""
        if self._group is None:
            return self._number
        number = torch.tensor([self._number])
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._group)  # type: ignore[arg-type]
        return int(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._number == signal.SIGINT:
            raise KeyboardInterrupt("stopped at once by a second Ctrl-C; the same command goes on from what was saved")
        self._number = number
