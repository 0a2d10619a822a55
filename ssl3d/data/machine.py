"""What this process may take of its machine: cores and memory, within what a container or a batch system allows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_MEMORY = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def available_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its control groups, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [cores, *(q for folder in _groups("cpu") if (q := _quota(folder)) is not None)]
    return max(1, min(quotas))


def available_memory() -> int:
    """Bytes that can still be taken: free memory, within the limits of this process's control groups."""
    found = [int(psutil.virtual_memory().available)]
    for folder in _groups("memory"):
        for limit, usage in _MEMORY:
            values = _numbers(folder / limit), _numbers(folder / usage)
            if values[0] and values[1]:
                found.append(max(0, values[0][0] - values[1][0]))
    return min(found)


def _quota(folder: Path) -> int | None:
    """Cores that a control group may keep busy; None without a limit."""
    numbers = _numbers(folder / "cpu.max")
    if not numbers:
        numbers = _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
    return math.ceil(numbers[0] / numbers[1]) if len(numbers) == 2 and numbers[1] else None


def _numbers(file: Path) -> list[int]:
    """The whole numbers in a file of a control group; none where it is missing or says max or -1."""
    try:
        words = file.read_text().split()
    except OSError:
        return []
    return [int(word) for word in words] if words and all(word.isdigit() for word in words) else []


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that hold this process, innermost first: version 2, then version 1."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        lines = []
    own = {names: path for _, names, path in (line.split(":", 2) for line in lines if line.count(":") >= 2)}
    first = next((path for names, path in own.items() if controller in names.split(",")), "/")
    for root, path in ((_CGROUP, own.get("", "/")), (_CGROUP / controller, first)):
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root):  # a container sees its own group as the root
                yield folder
