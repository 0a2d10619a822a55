"""Cores and memory: what a container or a batch system allows, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from ssl3d.data import machine


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """groups(own lines, {file: text}) makes control groups; 16 cores of affinity and 10 GB of free memory beside."""

    def make(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / name).write_text(text)

    monkeypatch.setattr(machine, "_OWN", tmp_path / "own")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "fs")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    free = type("Memory", (), {"available": 10**10})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    return make


def test_without_limits_it_is_the_affinity_and_the_free_memory(groups):
    groups("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n", "memory.current": "5\n"})
    assert machine.available_cores() == 16 and machine.available_memory() == 10**10
    (machine._OWN).unlink()
    assert machine.available_cores() == 16 and machine.available_memory() == 10**10


@pytest.mark.parametrize("quota,cores", [("400000 100000", 4), ("250000 100000", 3), ("20000 100000", 1)])
def test_a_container_s_quota(groups, quota, cores):
    groups("0::/\n", {"cpu.max": quota, "memory.max": "3000\n", "memory.current": "1000\n"})
    assert machine.available_cores() == cores and machine.available_memory() == 2000


def test_the_narrowest_of_nested_groups_counts(groups):
    groups("0::/job/step\n", {
        "cpu.max": "max 100000", "job/cpu.max": "600000 100000", "job/step/cpu.max": "max 100000",
        "job/memory.max": "9000", "job/memory.current": "1000", "job/step/memory.max": "9000",
        "job/step/memory.current": "9500", "other/cpu.max": "100000 100000",
    })  # fmt: skip
    assert machine.available_cores() == 6 and machine.available_memory() == 0


def test_version_one(groups):
    groups("4:memory:/job\n3:cpu,cpuacct:/job\n", {
        "cpu/job/cpu.cfs_quota_us": "300000", "cpu/job/cpu.cfs_period_us": "100000", "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000", "memory/job/memory.limit_in_bytes": "800",
        "memory/job/memory.usage_in_bytes": "300",
    })  # fmt: skip
    assert machine.available_cores() == 3 and machine.available_memory() == 500
