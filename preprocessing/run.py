"""One run of a conversion, under the store's lock: settle ids, convert what is missing, index, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from preprocessing.cluster import run_jobs
from preprocessing.codes import settle_codes
from preprocessing.duplicates import exact_duplicates, near_duplicates, write_duplicates
from preprocessing.ids import name_digest, settle_ids
from preprocessing.job import Outcome, Settings, convert_source
from preprocessing.ledger import Entry, Ledger, made_with
from preprocessing.plan import median_spacing
from preprocessing.refusal import Refusal
from preprocessing.report import ConvertReport, write_refused
from preprocessing.source import Source
from ssl3d.data import damage
from ssl3d.data import format as fmt
from ssl3d.data.encode import METADATA
from ssl3d.data.index import collect_rows, decode_index, keep_rows, write_index
from ssl3d.data.machine import available_memory
from ssl3d.data.objects import LocalObjects, in_parallel, open_objects
from ssl3d.data.write import create_store, remove_uncommitted, uncommit
from ssl3d.terminal import Meter, progress, say

# Verdicts that may be the machine's fault, not the file's: what had them is tried once more, alone.
_SECOND_CHANCE = ("worker_died", "too_large")
_HASHED = ("dicom-", "archive-", "folder-")  # how sources are called whose names may be those of patients
_MOST_WARNINGS = 20  # pairs that look alike named on the screen; all are in duplicates.csv


@dataclass(frozen=True)
class Options:
    """How to convert: `spacing` as asked for ("median" included), `workers` local processes or a dask `scheduler`.

    `memory_bytes`: what one scan may take in a worker; None: this machine's memory, shared equally.
    """

    spacing: str | tuple[float, float, float]
    modality: str
    workers: int
    scheduler: str | None = None
    allow_gaps: bool = False
    timeout_s: float = 600.0
    memory_bytes: int | None = None


class Run:
    """One run under the store's lock, whose `token` its workers show."""

    def __init__(self, root: str, token: str, sources: list[Source], digests: Sequence[str], options: Options) -> None:
        self.root, self.token, self.options = root, token, options
        self.objects = open_objects(root)
        self.sources, self.digests = sources, digests
        self.committed: set[str] = set()
        self.refused: list[tuple[Source, str, Refusal]] = []
        self._before = 0  # of them, those that were refused before a voxel was read

    def convert(self) -> ConvertReport:
        """Convert what is missing, drop duplicates, index, write refused.csv and the last line.

        Raises ValueError when the store was made with other settings, StoreError when it cannot be written.
        """
        create_store(self.root)
        remove_uncommitted(self.root)
        self.committed = set(self.objects.holding(fmt.VOLUMES, METADATA))
        ledger = self._enter()
        self._repair()
        self._work(self._settings(ledger))
        table, statistics = collect_rows(self.objects)
        order = {name: k for k, source in enumerate(self.sources) for name in source.volume_ids()}
        duplicates = exact_duplicates(decode_index(table, described=False), order)
        if duplicates:
            self._drop(duplicates, ledger)
            table, statistics = keep_rows(table, lambda name: name not in duplicates)
        write_index(self.objects, table, statistics)
        self._warn(table)
        return self._report(table)

    def _enter(self) -> Ledger:
        """Settle ids and spacing with what the store holds, and note both before the first volume is written.

        Raises ValueError when the store was made with other settings.
        """
        ledger = Ledger.load(self.objects)
        wanted = self.options.spacing
        requested = wanted if isinstance(wanted, str) else list(wanted)
        if ledger.requested_spacing not in (None, requested):
            raise ValueError(
                f"store {self.root} was converted with --spacing {_as_text(ledger.requested_spacing)}, not"
                f" {_as_text(requested)}: give the same spacing or another store"
            )
        held = {name for name, entry in ledger.entries.items() if entry.duplicate_of or self._has(name)}
        names = [name_digest(source) for source in self.sources]
        settle_ids(self.sources, self.digests, ledger.entries, held)
        if ledger.spacing is None:
            spacing = median_spacing(self.sources) if wanted == "median" else wanted
            ledger.requested_spacing, ledger.spacing = requested, spacing if isinstance(spacing, str) else list(spacing)
        settle_codes(self.sources, ledger.codes)
        for source, name, content in zip(self.sources, names, self.digests):
            if source.problem is not None:
                continue
            made = made_with(source, self.options.modality)
            earlier = ledger.entries.get(source.id) if source.id in held else None
            if earlier is not None and earlier.made != made:
                raise ValueError(
                    f"{source.id} is in store {self.root} already, made with other labels, targets, subjects or"
                    " modality: give the same ones or another store"
                )
            if earlier is not None and earlier.duplicate_of in self.committed:
                source.problem = Refusal("duplicate", f"holds the same voxels as {earlier.duplicate_of}")
            else:
                ledger.entries[source.id] = Entry(content, made, name=name)
        ledger.save(self.objects)
        return ledger

    def _has(self, source_id: str) -> bool:
        """Whether a volume of an earlier source is in the store, a whole one or the first frames of a series."""
        return source_id in self.committed or f"{source_id}_t0000" in self.committed

    def _repair(self) -> None:
        """Take back the commit of volumes of the given sources that are damaged, so that they are made again."""
        noted = damage.noted_damage(self.root)
        owners = {name: source for source in self.sources for name in source.volume_ids() if name in self.committed}
        doubted = in_parallel(lambda name: name in noted or damage.suspect(self.root, name), list(owners))
        for name, doubtful in zip(owners, list(doubted)):
            keys = (noted.get(name) or damage.damaged_objects(self.root, name)) if doubtful else []
            if keys:
                say(f"{keys[0]} in {self.root} is damaged: {owners[name].shown} is converted again")
                uncommit(self.root, name)
                self.committed.discard(name)
        damage.forget_damage(self.root, (name for source in self.sources for name in source.volume_ids()))

    def _settings(self, ledger: Ledger) -> Settings:
        """What the workers are told. On other machines, paths are absolute and the memory is theirs to know."""
        options, root, memory = self.options, self.root, self.options.memory_bytes
        if options.scheduler is not None and isinstance(self.objects, LocalObjects):
            root = str(Path(self.objects.root).absolute())
        if options.scheduler is None and memory is None:
            memory = available_memory() // options.workers
        spacing = ledger.spacing if isinstance(ledger.spacing, str) else tuple(ledger.spacing)
        return Settings(
            root, spacing, options.modality, options.allow_gaps, options.timeout_s, memory, token=self.token
        )

    def _work(self, settings: Settings) -> None:
        """Run the jobs that have something to do."""
        for source in self.sources:
            if source.problem is not None:
                self._refuse(source, source.id, source.problem)
        jobs = [s for s in self.sources if s.problem is None and not self.committed.issuperset(s.volume_ids())]
        if not jobs:
            return
        self._before = len(self.refused)
        with progress("converting", len(jobs)) as meter:
            again = self._pass(jobs, settings, self.options.workers, meter, 0, _SECOND_CHANCE)
            if again:
                alone = settings
                if self.options.scheduler is None and self.options.memory_bytes is None:
                    alone = replace(settings, memory_bytes=available_memory())
                self._pass(again, alone, 1, meter, len(jobs) - len(again), ())

    def _pass(
        self,
        jobs: Sequence[Source],
        settings: Settings,
        workers: int,
        meter: Meter,
        done: int,
        postponed: Sequence[str],
    ) -> list[Source]:
        """Convert sources; those refused for a reason in `postponed` are handed back instead."""
        again = []
        sent = [_light(source, absolute=self.options.scheduler is not None) for source in jobs]
        function = partial(convert_source, settings=settings)
        for number, outcomes in run_jobs(function, sent, _died, workers, self.options.scheduler):
            if any(outcome.refusal is not None and outcome.refusal.reason in postponed for outcome in outcomes):
                again.append(jobs[number])
                continue
            for outcome in outcomes:
                if outcome.refusal is not None:
                    self._refuse(jobs[number], outcome.volume_id, outcome.refusal)
            done += 1
            refused = len(self.refused) - self._before
            meter.update(done, f"({refused} refused)" if refused else "")
        return again

    def _refuse(self, source: Source, volume_id: str, refusal: Refusal) -> None:
        self.refused.append((source, volume_id, refusal))
        hashed = f" [{source.name}]" if source.name.startswith(_HASHED) else ""  # what refused.csv calls it
        say(f"refused {source.shown}{hashed}: {refusal}")

    def _drop(self, duplicates: dict[str, str], ledger: Ledger) -> None:
        """Remove volumes whose content is there already, and remember them, so that a resume need not read them."""
        owners = {name: source for source in self.sources for name in source.volume_ids()}
        for name, kept in sorted(duplicates.items()):
            source = owners.get(name)
            if source is not None:
                self._refuse(source, name, Refusal("duplicate", f"holds the same voxels as {kept}"))
                if source.frames == 1:
                    ledger.entries[name].duplicate_of = kept
            uncommit(self.root, name)
        ledger.save(self.objects)
        remove_uncommitted(self.root)

    def _warn(self, table: pa.Table) -> None:
        """Point out scans that look alike, and list them in the store."""
        found = near_duplicates(self.root, decode_index(table, described=False))
        write_duplicates(self.objects, found)
        for near in found[:_MOST_WARNINGS]:
            say(f"warning: {near}: one scan twice?")
        if len(found) > _MOST_WARNINGS:
            say(f"warning: {len(found) - _MOST_WARNINGS} more pairs look alike: {self.root}/{fmt.DUPLICATES_FILE}")

    def _report(self, table: pa.Table) -> ConvertReport:
        """Count, write refused.csv, and say the last lines."""
        place = {id(source): k for k, source in enumerate(self.sources)}
        self.refused.sort(key=lambda item: (place[id(item[0])], item[1]))
        held = set(table["id"].to_pylist())
        report = ConvertReport()
        for source in self.sources:
            if source.problem is None:
                report.converted += sum(name in held for name in source.volume_ids())
        report.refused = [(source.shown, refusal.reason) for source, _, refusal in self.refused]
        report.named_refused = any(s.named and r.reason != "duplicate" for s, _, r in self.refused)
        rows = [(source.name, refusal.reason, refusal.detail) for source, _, refusal in self.refused]
        write_refused(self.objects, rows, frozenset(source.name for source in self.sources))
        if report.refused:
            say(f"refused: {report.reasons} (which and why: {self.root}/{fmt.REFUSED_FILE})")
        say(report.summary)
        return report


def _died(source: Source, refusal: Refusal) -> list[Outcome]:
    return [Outcome(source.id, refusal)]


def _light(source: Source, absolute: bool) -> Source:
    """The source as it travels: without what planning knew of it, paths `absolute` for workers in another folder."""
    if not absolute:
        return replace(source, header=None)
    label = None if source.label is None else source.label.absolute()
    masks = {name: path.absolute() for name, path in source.masks.items()}
    return replace(source, header=None, paths=[path.absolute() for path in source.paths], label=label, masks=masks)


def _as_text(spacing: str | list[float]) -> str:
    return spacing if isinstance(spacing, str) else ",".join(f"{s:g}" for s in spacing)
