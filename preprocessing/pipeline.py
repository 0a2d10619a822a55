"""convert: raw files -> store. Finds and plans; what follows under the store's lock is in run.py."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from preprocessing.archives import Scratch
from preprocessing.ledger import content_digest
from preprocessing.lock import check_free, exclusive
from preprocessing.machine import default_workers
from preprocessing.plan import attach_labels, attach_targets, find_sources, parse_spacing
from preprocessing.rehearsal import rehearse
from preprocessing.report import ConvertReport
from preprocessing.run import Options, Run
from preprocessing.subjects import key_file, load_key
from ssl3d.data import format as fmt
from ssl3d.data.encode import METADATA
from ssl3d.data.objects import Objects, in_parallel, is_url, local_path, open_objects
from ssl3d.data.write import check_new
from ssl3d.terminal import say

__all__ = ["ConvertReport", "convert"]


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
    """Convert folders, data sets, files, patterns, archives and lists to one store; run again, it resumes.

    `store`: a folder, or an fsspec URL such as s3://bucket/name. `spacing`: "iso1", "median", "keep" or (z, y, x) mm.
    `modality`: "auto", "ct", "mr", "pet", "other". `labels`: a folder of labels of the same file names. `targets`: CSV
    of numbers a volume. `subject_key`: file that pseudonyms are made with. `workers`: processes (default: a core each,
    as far as the memory goes). `scheduler`: address of a dask scheduler, whose workers are used instead. `allow_gaps`:
    interpolate missing slices. `timeout`: seconds a source may take. `memory`: GiB a scan may take in a worker
    (default: the free memory, shared equally).
    Raises FileNotFoundError and ValueError for what the user named wrongly, StoreError when the store cannot be
    written, KeyboardInterrupt on SIGINT and SIGTERM; scans that cannot be converted are refused.
    """
    arguments = [sources] if isinstance(sources, str | Path) else list(sources)
    objects = open_objects(store)
    options = Options(
        spacing=parse_spacing(spacing),
        modality=modality,
        workers=workers or default_workers(),
        scheduler=scheduler,
        allow_gaps=allow_gaps,
        timeout_s=timeout,
        memory_bytes=None if memory is None else int(memory * 2**30),
    )
    _check_arguments(arguments, objects, modality, {"--workers": workers, "--timeout": timeout, "--memory": memory})
    if not dry_run:
        check_free(str(store))  # now, not after an hour of looking through a hundred thousand files
    with _stoppable(objects.root), Scratch(store, rehearsal=dry_run) as scratch:
        place = None if is_url(store) else local_path(store)
        key = load_key(subject_key, place, keep=not dry_run)
        skip = [folder for folder in (place, None if labels is None else Path(labels)) if folder is not None]
        found = find_sources(arguments, key, skip, scratch, say, guess_labels=labels is None)
        if labels is not None:
            attach_labels(found, Path(labels))
        if targets is not None:
            attach_targets(found, Path(targets))
        if dry_run:
            if not key_file(subject_key).is_file():
                say("there is no subject key yet: a run makes one, and hashed ids will be others than these")
            return rehearse(found, objects)
        digests = list(in_parallel(lambda source: content_digest(source.paths), found))
        with exclusive(str(store)) as token:
            return Run(str(store), token, found, digests, options).convert()


@contextlib.contextmanager
def _stoppable(store: str) -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C: workers end, the lock is released. Raises KeyboardInterrupt in one sentence."""
    terminated = threading.Event()

    def stop(number: int, frame: Any) -> None:
        terminated.set()
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    earlier = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except KeyboardInterrupt:
        how = "SIGTERM" if terminated.is_set() else "Ctrl-C"
        raise KeyboardInterrupt(
            f"stopped by {how}: every volume that is in {store} is whole, and the same command goes on where it ended"
        ) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, earlier if earlier is not None else signal.SIG_DFL)


def _check_arguments(
    arguments: Sequence[str | Path], objects: Objects, modality: str, numbers: dict[str, float | None]
) -> None:
    """Raises ValueError or FileNotFoundError before anything is made."""
    if not arguments:
        raise ValueError("no source is given: name files, folders or data sets, and the store last")
    if modality not in ("auto", *fmt.MODALITIES):
        raise ValueError(f"--modality {modality}: choose one of auto, {', '.join(fmt.MODALITIES)}")
    for flag, number in numbers.items():
        if number is not None and not (math.isfinite(number) and number > 0):
            raise ValueError(f"{flag} {number:g}: it must be more than 0")
    if not is_url(objects.root) and Path(objects.root).is_file():
        raise ValueError(f"{objects.root} is a file: choose an empty or a new path for the store")
    if not objects.exists(METADATA):
        check_new(objects.root)
