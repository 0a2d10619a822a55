"""Freed memory is kept: the same large buffers, again and again, cost no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, torch
from ssl3d.memory import keep_freed_memory
kept = keep_freed_memory() if {keep} else True
sizes = (20_000_000, 5_000_000, 1_000_000) * 6
[torch.ones(n).sum() for n in sizes]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
[torch.ones(n).sum() for n in sizes]
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is GNU libc's")
def test_no_page_faults():
    def faults(keep: bool) -> tuple[int, int]:
        out = subprocess.run([sys.executable, "-c", CODE.format(keep=keep)], check=True, capture_output=True, text=True)
        kept, count = out.stdout.split()
        return int(kept), int(count)

    kept, count = faults(True)
    if not kept:
        pytest.skip("another C library")
    assert count < faults(False)[1] / 10
