"""What this machine offers a conversion: cores, memory, and how many workers both are good for."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

WORKER_BYTES = 4 << 30  # a worker is expected to find that much memory: a large CT at 1 mm takes about three
_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that can still be taken: free memory, within what a container or a batch system allows (cgroups)."""
    found = [int(psutil.virtual_memory().available)]
    for limit, usage in _LIMITS:
        if (_CGROUP / limit).is_file() and (_CGROUP / usage).is_file():
            text = (_CGROUP / limit).read_text().strip()
            if text.isdigit():
                found.append(max(0, int(text) - int((_CGROUP / usage).read_text())))
    return min(found)


def default_workers() -> int:
    """A worker a core, as long as each finds some gigabytes of memory."""
    return max(1, min(available_cores(), available_memory() // WORKER_BYTES))
