"""How many workers this machine is good for."""

from __future__ import annotations

from ssl3d.data.machine import available_cores, available_memory

WORKER_BYTES = 4 << 30  # a worker is expected to find that much memory: a large CT at 1 mm takes about three


def default_workers() -> int:
    """A worker a core, as long as each finds some gigabytes of memory."""
    return max(1, min(available_cores(), available_memory() // WORKER_BYTES))
