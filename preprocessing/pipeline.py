"""convert: raw files -> store. Finds, plans, converts in parallel, indexes, and says what was refused."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from preprocessing.cluster import available_cores, run_jobs
from preprocessing.duplicates import exact_duplicates, near_duplicates
from preprocessing.ledger import Entry, Ledger, content_digest, made_with
from preprocessing.plan import attach_labels, attach_targets, find_sources, median_spacing, parse_spacing
from preprocessing.progress import Reporter
from preprocessing.refusal import Refusal
from preprocessing.source import Source
from preprocessing.sources import assign_unique_ids
from preprocessing.subjects import load_key
from preprocessing.work import Outcome, Settings, convert_source
from ssl3d.data import format as fmt
from ssl3d.data.write import build_index, create_store, is_committed, remove_uncommitted


@dataclass
class ConvertReport:
    """`converted`: volumes of the given sources that are in the store (or, dry, would be); `refused`: (source, reason).

    `named_refused`: a file that was named (not met in a folder) is among the refused.
    """

    converted: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    named_refused: bool = False

    @property
    def exit_code(self) -> int:
        """0; 1 when nothing was converted or a named file was refused."""
        return 1 if self.converted == 0 or self.named_refused else 0

    @property
    def summary(self) -> str:
        """The last line of a run."""
        return f"converted {self.converted}, refused {len(self.refused)}"


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
    dry_run: bool = False,
) -> ConvertReport:
    """Convert files, folders, DICOM series and MSD or nnU-Net data sets to one store; run again, it resumes.

    `spacing`: "iso1", "median", "keep" or (z, y, x) mm. `modality`: "auto", "ct", "mr", "pet", "other". `labels`: a
    folder of labels of the same file names. `targets`: CSV of numbers a volume. `subject_key`: file that pseudonyms
    are made with. `workers`: processes (default: a core each). `scheduler`: address of a dask scheduler.
    Raises FileNotFoundError and ValueError for what the user named wrongly; scans that cannot be converted are refused.
    """
    arguments = [sources] if isinstance(sources, str | Path) else list(sources)
    root = Path(store)
    wanted = parse_spacing(spacing)
    _check_arguments(arguments, root, modality, workers)
    reporter = Reporter()
    key = load_key(subject_key, root)
    skip = [root] if labels is None else [root, Path(labels)]
    found = find_sources(arguments, key, skip)
    if labels is not None:
        attach_labels(found, Path(labels))
    if targets is not None:
        attach_targets(found, Path(targets))
    digests = [content_digest(source.paths) for source in found]
    if dry_run:
        return _rehearse(found, digests, Ledger.load(root), reporter)
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / fmt.LOCK_FILE, timeout=0):
            run = _Run(root, found, digests, modality, reporter)
            return run.convert(wanted, workers or available_cores(), scheduler)
    except Timeout as error:
        raise ValueError(f"store {store} is being written by another ssl3d convert: wait until it has ended") from error


def _check_arguments(arguments: Sequence[str | Path], root: Path, modality: str, workers: int | None) -> None:
    """Raises ValueError or FileNotFoundError before anything is made."""
    if not arguments:
        raise ValueError("no source is given: name files, folders or data sets, and the store last")
    if modality not in ("auto", *fmt.MODALITIES):
        raise ValueError(f"--modality {modality}: choose one of auto, {', '.join(fmt.MODALITIES)}")
    if workers is not None and workers < 1:
        raise ValueError(f"--workers {workers}: at least 1 is needed")
    if root.is_file() or (root.is_dir() and not (root / "zarr.json").exists() and _foreign(root)):
        raise ValueError(f"{root} exists and is not an ssl3d store: choose an empty or a new path for the store")


def _foreign(root: Path) -> bool:
    """Whether a folder without a store's root metadata holds anything but the rests of a store just begun."""
    return any(entry.name not in (fmt.LOCK_FILE, *fmt.KINDS) for entry in root.iterdir())


def _rehearse(found: list[Source], digests: list[str], ledger: Ledger, reporter: Reporter) -> ConvertReport:
    """List what a run would make."""
    assign_unique_ids(found, {name: entry.content for name, entry in ledger.entries.items()}, digests)
    report = ConvertReport()
    for source in found:
        if source.problem is not None:
            report.refused.append((source.shown, source.problem.reason))
            report.named_refused |= source.named
            reporter.line(f"would refuse {source.shown}: {source.problem}")
            continue
        ids = source.volume_ids()
        report.converted += len(ids)
        label = "labelled" if source.label is not None else "unlabelled"
        listed = ids[0] if len(ids) == 1 else f"{ids[0]} ... {ids[-1]}"
        reporter.line(f"would make {listed} from {source.shown} ({label}, subject {source.subject})")
    reporter.line(f"would convert {report.converted}, refuse {len(report.refused)}")
    return report


class _Run:
    """One run under the store's lock."""

    def __init__(
        self, root: Path, sources: list[Source], digests: list[str], modality: str, reporter: Reporter
    ) -> None:
        self.root, self.sources, self.digests = root, sources, digests
        self.modality, self.reporter = modality, reporter
        self.refused: list[tuple[Source, str, Refusal]] = []

    def convert(self, wanted: str | tuple[float, float, float], workers: int, scheduler: str | None) -> ConvertReport:
        """Convert what is missing, drop duplicates, index, write refused.csv and the last line."""
        create_store(self.root)
        remove_uncommitted(self.root)
        ledger = self._enter(wanted)
        settings = Settings(str(self.root), _plain_spacing(ledger.spacing), self.modality)
        self._work(settings, workers, scheduler)
        index = build_index(self.root)
        order = {name: k for k, source in enumerate(self.sources) for name in source.volume_ids()}
        duplicates = exact_duplicates(index, order)
        if duplicates:
            self._drop(duplicates, ledger)
            index = build_index(self.root)
        for a, b, correlation in near_duplicates(self.root, index):
            self.reporter.line(f"warning: {a} and {b} look alike (correlation {correlation:.3f}): one scan twice?")
        return self._report()

    def _enter(self, wanted: str | tuple[float, float, float]) -> Ledger:
        """Settle ids and spacing with what the store holds, and note both before the first volume is written.

        Raises ValueError when the store was made with other settings.
        """
        ledger = Ledger.load(self.root)
        requested = wanted if isinstance(wanted, str) else list(wanted)
        if ledger.requested_spacing not in (None, requested):
            raise ValueError(
                f"store {self.root} was converted with --spacing {_as_text(ledger.requested_spacing)}, not"
                f" {_as_text(requested)}: give the same spacing or another store"
            )
        kept = {name: e for name, e in ledger.entries.items() if e.duplicate_of or self._has(name)}
        assign_unique_ids(self.sources, {name: entry.content for name, entry in kept.items()}, self.digests)
        if ledger.spacing is None:
            spacing = median_spacing(self.sources) if wanted == "median" else wanted
            ledger.requested_spacing, ledger.spacing = requested, spacing if isinstance(spacing, str) else list(spacing)
        for source, content in zip(self.sources, self.digests):
            if source.problem is not None:
                continue
            made = made_with(source, self.modality)
            earlier = kept.get(source.id)
            if earlier is not None and earlier.made != made:
                raise ValueError(
                    f"{source.id} is in store {self.root} already, made with other labels, targets, subjects or"
                    " modality: give the same ones or another store"
                )
            if earlier is not None and earlier.duplicate_of and is_committed(self.root, earlier.duplicate_of):
                source.problem = Refusal("duplicate", f"holds the same voxels as {earlier.duplicate_of}")
            else:
                ledger.entries[source.id] = Entry(content, made)
        ledger.save(self.root)
        return ledger

    def _has(self, source_id: str) -> bool:
        """Whether a volume of an earlier source is in the store, a whole one or the first frames of a series."""
        return any(is_committed(self.root, name) for name in (source_id, f"{source_id}_t0000"))

    def _work(self, settings: Settings, workers: int, scheduler: str | None) -> None:
        """Run the jobs that have something to do."""
        for source in self.sources:
            if source.problem is not None:
                self._refuse(source, source.id, source.problem)
        jobs = [source for source in self.sources if source.problem is None and not self._complete(source)]
        if not jobs:
            return
        with self.reporter.counting("converting", len(jobs)) as counter:
            results = run_jobs(partial(convert_source, settings=settings), jobs, _died, workers, scheduler)
            for number, outcomes in results:
                counter.step()
                for outcome in outcomes:
                    if outcome.refusal is not None:
                        self._refuse(jobs[number], outcome.volume_id, outcome.refusal)

    def _complete(self, source: Source) -> bool:
        return all(is_committed(self.root, name) for name in source.volume_ids())

    def _refuse(self, source: Source, volume_id: str, refusal: Refusal) -> None:
        self.refused.append((source, volume_id, refusal))
        self.reporter.line(f"refused {source.shown}: {refusal}")

    def _drop(self, duplicates: dict[str, str], ledger: Ledger) -> None:
        """Remove volumes whose content is there already, and remember them, so that a resume need not read them."""
        owners = {name: source for source in self.sources for name in source.volume_ids()}
        for name, kept in sorted(duplicates.items()):
            source = owners.get(name)
            if source is not None:
                self._refuse(source, name, Refusal("duplicate", f"holds the same voxels as {kept}"))
                if source.frames == 1:
                    ledger.entries[name].duplicate_of = kept
            (self.root / fmt.VOLUMES / name / "zarr.json").unlink()
        ledger.save(self.root)
        remove_uncommitted(self.root)

    def _report(self) -> ConvertReport:
        """Count, write refused.csv, and say the last line."""
        place = {id(source): k for k, source in enumerate(self.sources)}
        self.refused.sort(key=lambda item: (place[id(item[0])], item[1]))
        report = ConvertReport()
        for source in self.sources:
            if source.problem is None:
                report.converted += sum(is_committed(self.root, name) for name in source.volume_ids())
        report.refused = [(source.shown, refusal.reason) for source, _, refusal in self.refused]
        report.named_refused = any(s.named and r.reason != "duplicate" for s, _, r in self.refused)
        rows = [(source.name, refusal.reason, refusal.detail) for source, _, refusal in self.refused]
        _write_refused(self.root, rows, {source.name for source in self.sources})
        self.reporter.line(report.summary)
        return report


def _died(source: Source, refusal: Refusal) -> list[Outcome]:
    return [Outcome(source.id, refusal)]


def _plain_spacing(spacing: str | list[float]) -> str | tuple[float, float, float]:
    if isinstance(spacing, str):
        return spacing
    z, y, x = spacing
    return z, y, x


def _as_text(spacing: str | list[float]) -> str:
    return spacing if isinstance(spacing, str) else ",".join(f"{s:g}" for s in spacing)


def _write_refused(root: Path, rows: list[tuple[str, str, str]], seen: set[str]) -> None:
    """refused.csv: source, reason, detail; rows of earlier runs stay unless their source was given again."""
    file = root / fmt.REFUSED_FILE
    earlier: list[tuple[str, str, str]] = []
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as handle:
            for row in list(csv.reader(handle))[1:]:
                if row[0] not in seen:
                    earlier.append((row[0], row[1], row[2]))
    partial_file = root / (fmt.REFUSED_FILE + ".partial")
    with partial_file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("source", "reason", "detail"))
        writer.writerows([*earlier, *rows])
    partial_file.replace(file)
