"""examine(): is this machine fit for ssl3d? What a bug report begins with. No host names, no users, no network."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

from ssl3d.doctor import machine, packages, pytorch
from ssl3d.doctor.finding import Finding, State, wrong

__all__ = ["Finding", "State", "as_json", "as_text", "examine"]


def examine(store: str | None = None, folder: str | None = None) -> list[Finding]:
    """Look at packages, PyTorch, GPUs, cores, memory, disks and limits, in this order.

    `store`, `folder`: where a store and runs are to be written; their disks are looked at too.
    """
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("ssl3d", packages.versions),
        ("packages", packages.required),
        ("torch", pytorch.pytorch),
        ("cores", machine.cores),
        ("memory", machine.memory),
        ("this folder", partial(machine.disk, "this folder", ".")),
    ]
    for about, place in (("--store", store), ("--dir", folder)):
        if place is not None:
            checks.append((about, partial(machine.disk, about, place)))
    checks += [
        ("open files", machine.open_files),
        ("/dev/shm", machine.shared_memory),
        ("wandb", packages.wandb),
        ("extras", packages.extras),
    ]
    return [finding for about, check in checks for finding in _look(about, check)]


def _look(about: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """What a check finds; a package or a folder that is missing is a finding, not the end of the others."""
    try:
        return check()
    except (ImportError, OSError) as error:
        return [wrong(about, f"cannot be looked at ({error})", "install ssl3d anew (docs/installing.md)")]


def as_text(findings: list[Finding]) -> str:
    """A line each, then a summary."""
    bad = [finding for finding in findings if finding.state == State.WRONG]
    doubtful = sum(finding.state == State.WARNING for finding in findings)
    last = f"{len(bad)} wrong, {doubtful} to note" if bad or doubtful else "all is well"
    return "\n".join([*(finding.line() for finding in findings), last])


def as_json(findings: list[Finding]) -> str:
    """A list of {about, state, sentence, remedy}."""
    return json.dumps([vars(finding) for finding in findings], indent=1)
