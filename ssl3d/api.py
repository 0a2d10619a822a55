"""The verbs of the command line in Python, where they are not in a module of ssl3d: convert and evaluate.

preprocessing and downstream lie beside this package; they are imported when they are called.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ssl3d.known_warnings import hide_known_warnings

if TYPE_CHECKING:
    from preprocessing.report import ConvertReport
    from ssl3d.config import Overrides

ROOT = Path(__file__).resolve().parent.parent  # ssl3d, preprocessing, downstream and recipes lie side by side


class HiddenPackageError(ImportError):
    """A package of the user's has the name of one of ours and is found first; one sentence with the remedy."""


def neighbour(name: str) -> ModuleType:
    """Import preprocessing or downstream. Raises HiddenPackageError when it is a namesake that hides ours."""
    module = importlib.import_module(name)
    found = Path(module.__file__ or "").resolve().parent.parent
    if found != ROOT:
        raise HiddenPackageError(
            f"another '{name}' in {found} hides the one of ssl3d: rename it, or run from another folder"
        )
    return module


def convert(
    sources: str | Path | Sequence[str | Path],
    store: str | Path,
    *,
    spacing: str | Sequence[float] = "iso1",
    modality: str = "auto",
    labels: str | Path | None = None,
    targets: str | Path | None = None,
    subject_key: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    allow_gaps: bool = False,
    timeout: float = 600.0,
    memory: float | None = None,
    dry_run: bool = False,
) -> ConvertReport:
    """Turn raw scans into a store, a zarr group of int16 volumes; the same call again resumes.

    `sources`: folders, data sets, files, patterns, archives, lists. `store`: a folder or an fsspec URL.
    `spacing`: "iso1" (1 mm), "median", "keep", or (z, y, x) mm. `modality`: "auto", "ct", "mr", "pet", "other".
    `labels`: folder of label files of the same names. `targets`: CSV of numbers a subject or file. `subject_key`: file
    of the key that subjects of clinical data are hashed with. `workers`: processes (default: a core each, as far as the
    memory goes). `scheduler`: address of a dask scheduler. `allow_gaps`: interpolate missing slices. `timeout`: seconds
    for a source. `memory`: GiB for one scan in a worker. `dry_run`: say what would be made, write nothing.

    Returns how many volumes were converted and which sources were refused for what reason: a scan that cannot be
    converted raises nothing. Raises FileNotFoundError and ValueError for what was named wrongly, StoreError when the
    store cannot be written, KeyboardInterrupt on SIGINT and SIGTERM.
    """
    hide_known_warnings()
    report: ConvertReport = neighbour("preprocessing").convert(
        sources,
        store,
        spacing=spacing,
        modality=modality,
        labels=labels,
        targets=targets,
        subject_key=subject_key,
        workers=workers,
        scheduler=scheduler,
        allow_gaps=allow_gaps,
        timeout=timeout,
        memory=memory,
        dry_run=dry_run,
    )
    return report


def evaluate(
    runs: str | Path | Sequence[str | Path],
    suite: str | Path | Mapping[str, Any],
    out: str | Path,
    overrides: Overrides = (),
    plan_only: bool = False,
) -> Path:
    """Score runs by how few labels they need, against scratch; says and returns the path of OUT/report.html.

    `runs`: run folders or weights files. `suite`: the name of one that ships, a YAML file, or its content.
    `overrides`: {"store": "labelled.zarr"}, or texts as the command line takes them. `plan_only`: say how many cells
    there are and how long they may take, train nothing, and return OUT/split.json, whose test patients pre-training
    must not see (data.exclude).

    Finished cells are kept: the same call again computes what is missing. Raises ConfigError, LeakError (a run has seen
    test patients) and other ValueErrors, or FileNotFoundError: one sentence each.
    """
    several = [runs] if isinstance(runs, str | Path) else list(runs)
    hide_known_warnings()
    written: Path = neighbour("downstream").evaluate(several, suite, out, overrides, plan_only)
    from ssl3d.terminal import say  # rich is not loaded by importing ssl3d

    say(str(written))
    return written
