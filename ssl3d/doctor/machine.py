"""Cores, memory, disks and the limits of this process."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ssl3d.doctor.finding import Finding, ok, warning, wrong

GIB = 2**30
OPEN_FILES = 1024  # a reader keeps 512 volumes open, and there are sockets, pipes and logs
SHM_GIB = 1.0  # fifty regions of 192^3 at three bytes a voxel; NCCL between GPUs takes some too
DISK_GIB = (1.0, 20.0)  # below the first nothing is finished; a large store or a run's checkpoints take the second
MEMORY_GIB = 4.0
SHM = Path("/dev/shm")


def cores() -> list[Finding]:
    """What affinity and control groups leave of the machine's cores."""
    from ssl3d.data.machine import available_cores

    usable, there = available_cores(), os.cpu_count() or 1
    sentence = f"{usable} of {there} may be used" if usable < there else f"{usable}"
    if usable < 2:
        return [warning("cores", sentence, "reading and training share it; ask the batch system or Docker for more")]
    return [ok("cores", sentence)]


def memory() -> list[Finding]:
    """Free memory, within the limits of a container or a job."""
    from ssl3d.data.machine import available_memory

    free = available_memory() / GIB
    if free < MEMORY_GIB:
        return [warning("memory", f"{free:.1f} GiB free, 4 are wanted", "end other programs, or raise the job's limit")]
    return [ok("memory", f"{free:.1f} GiB free")]


def disk(about: str, place: str) -> list[Finding]:
    """Room and permission to write at `place`, or where it would be made."""
    if "://" in place:
        return [ok(about, f"{place} is no folder of this machine; ssl3d inspect opens it")]
    folder = Path(place).absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".ssl3d-doctor-"):
            pass
    except OSError as error:
        return [wrong(about, f"nothing can be written to {place} ({error.strerror})", "choose another folder")]
    sentence = f"{free:.1f} GiB free, writable"
    if free < DISK_GIB[0]:
        return [wrong(about, sentence, "free some space, or choose another disk")]
    if free < DISK_GIB[1]:
        return [warning(about, sentence, "a store takes about half of its scans' unpacked bytes, a run a few GiB")]
    return [ok(about, sentence)]


def open_files() -> list[Finding]:
    """ulimit -n; nothing where there is no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        raised = OPEN_FILES if hard == resource.RLIM_INFINITY else min(max(hard, soft), 4 * OPEN_FILES)
        remedy = f"ulimit -n {raised}" if raised > soft else "ask the administrator for more"
        return [warning("open files", f"{soft} a process, {OPEN_FILES} are wanted", remedy)]
    return [ok("open files", "no limit" if soft == resource.RLIM_INFINITY else f"{soft} a process")]


def shared_memory() -> list[Finding]:
    """/dev/shm, which reader processes and NCCL use; a container has 64 MiB of it unless told otherwise."""
    if not SHM.is_dir():
        return []
    total = shutil.disk_usage(SHM).total / GIB
    if total < SHM_GIB:
        return [warning("/dev/shm", f"{total * 1024:.0f} MiB, {SHM_GIB:g} GiB is wanted by several GPUs and by reader "
                        "processes", "docker run --shm-size=8g, or --ipc=host")]  # fmt: skip
    return [ok("/dev/shm", f"{total:.1f} GiB")]
