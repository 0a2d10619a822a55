"""--dry-run: what a run would make of what, nothing written."""

from __future__ import annotations

from collections.abc import Sequence

from preprocessing.ids import settle_ids
from preprocessing.ledger import Ledger, content_digest
from preprocessing.refusal import Refusal
from preprocessing.report import ConvertReport
from preprocessing.source import Source
from preprocessing.summary import count
from ssl3d.data import format as fmt
from ssl3d.data.encode import METADATA
from ssl3d.data.objects import Objects, in_parallel
from ssl3d.terminal import say


def rehearse(found: Sequence[Source], objects: Objects) -> ConvertReport:
    """Say a line a source, and the sums at the end."""
    ledger = Ledger.load(objects)
    _settle_ids(found, ledger)
    report = ConvertReport()
    subjects = set()
    labelled = 0
    held = set(objects.holding(fmt.VOLUMES, METADATA))
    for source in found:
        earlier = ledger.entries.get(source.id)
        if source.problem is None and earlier is not None and earlier.duplicate_of in held:
            source.problem = Refusal("duplicate", f"holds the same voxels as {earlier.duplicate_of}")
        if source.problem is not None:
            report.refused.append((source.shown, source.problem.reason))
            report.named_refused |= source.named
            say(f"would refuse {source.shown}: {source.problem}")
            continue
        ids = source.volume_ids()
        report.converted += len(ids)
        subjects.add(source.subject)
        labelled += len(ids) if source.labelled else 0
        listed = ids[0] if len(ids) == 1 else f"{ids[0]} ... {ids[-1]}"
        verb = "would keep" if held.issuperset(ids) else "would make"
        say(f"{verb} {listed} from {source.shown} ({_described(source)})")
    say(f"would have {count(len(subjects), 'subject')}, {labelled} of {count(report.converted, 'volume')} labelled")
    say("voxels were not read: a run may refuse more")
    if report.refused:
        say(f"would be refused: {report.reasons}")
    say(f"would convert {report.converted}, refuse {len(report.refused)}")
    return report


def _settle_ids(found: Sequence[Source], ledger: Ledger) -> None:
    """Ids as a run would give them; contents are looked at only where names collide or a store is there already."""
    usable = [source for source in found if source.problem is None]
    names: dict[str, list[Source]] = {}
    for source in usable:
        names.setdefault(source.id.lower(), []).append(source)
    alike = usable if ledger.entries else [source for group in names.values() if len(group) > 1 for source in group]
    known = {id(s): digest for s, digest in zip(alike, in_parallel(lambda s: content_digest(s.paths), alike))}
    digests = [known.get(id(source), "") for source in usable]
    settle_ids(usable, digests, ledger.entries, ledger.entries.keys())


def _described(source: Source) -> str:
    """Label, subject, channels, frames, files."""
    words = ["labelled" if source.labelled else "unlabelled", f"subject {source.subject}"]
    if source.channels:
        frames = 1 if source.header is None else source.header.frames
        words.append(count(max(len(source.paths), frames), "channel"))
    if source.frames > 1:
        words.append(count(source.frames, "frame"))
    if source.series:
        words.append(count(len(source.paths), "file"))
    if source.target_classes or source.targets:
        words.append(f"targets {', '.join(sorted({**source.targets, **source.target_classes}))}")
    return ", ".join(words)
