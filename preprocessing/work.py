"""What is done with one source: read, build, write each of its volumes, or say why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from preprocessing import isolation, readers
from preprocessing.codes import merge_masks
from preprocessing.geometry import Scan
from preprocessing.job import Outcome, Settings
from preprocessing.lock import confirm
from preprocessing.plausible import check_values
from preprocessing.refusal import Refusal
from preprocessing.source import Source
from preprocessing.volume import build
from ssl3d.data.write import is_committed, write_volume

LABEL_REFUSED = "label_refused"  # flag: a DICOM SEG belongs to the scan and could not be used


def scans_of(source: Source, frames: Sequence[int], settings: Settings) -> Iterator[Scan]:
    """The scans of a source in turn: its series, its stacked channels, or the given frames of its file."""
    if source.series:
        yield readers.read_series(source.paths, source.selection, settings.allow_gaps)
    elif source.channels:
        yield readers.stack_channels([scan for path in source.paths for scan in readers.read(path)])
    else:
        yield from readers.read(source.paths[0], frames)


def _label_of(source: Source) -> Scan | None:
    """The label's file as read, or its masks merged; None for a DICOM SEG.

    Raises Refusal `label_unreadable` or `label_shape_mismatch`.
    """
    if source.masks:
        return merge_masks(source)
    if source.label is None or _is_segmentation(source.label):
        return None
    try:
        scans = list(readers.read(source.label))
    except Refusal as refusal:
        raise Refusal("label_unreadable", f"label: {refusal.detail}") from refusal
    if len(scans) != 1:
        raise Refusal("label_shape_mismatch", f"the label holds {len(scans)} volumes, its image one")
    return scans[0]


def _is_segmentation(label: Path) -> bool:
    """Whether a label is a DICOM SEG, which is read onto the grid of its scan."""
    return not readers.split_extension(label.name)[1]


def _segmentation_of(source: Source, scan: Scan) -> tuple[Scan | None, Refusal | None]:
    """(label of the scan or None, why there is none). A SEG was found, not asked for: without it the scan is kept."""
    if source.label is None or not _is_segmentation(source.label):
        return None, None
    try:
        return readers.read_segmentation(source.label, scan), None
    except Refusal as refusal:
        scan.flags.append(LABEL_REFUSED)
        return None, Refusal(refusal.reason, f"the scan is stored without its DICOM SEG: {refusal.detail}")


def convert_here(source: Source, settings: Settings) -> list[Outcome]:
    """Convert what is not in the store yet of a source, in this very process; one outcome a volume.

    Raises MemoryError when memory runs out.
    """
    ids = source.volume_ids()
    missing = [k for k, volume_id in enumerate(ids) if not is_committed(settings.root, volume_id)]
    outcomes = [Outcome(volume_id) for volume_id in ids if is_committed(settings.root, volume_id)]
    done = 0
    try:
        label = _label_of(source) if missing else None
        for frame, scan in zip(missing, scans_of(source, missing, settings)):
            segmentation, refusal = _segmentation_of(source, scan)
            outcomes.append(_convert_scan(ids[frame], source, scan, segmentation if label is None else label, settings))
            if refusal is not None and outcomes[-1].refusal is None:
                outcomes.append(Outcome(ids[frame], refusal))
            done += 1
    except Refusal as refusal:
        outcomes += [Outcome(ids[frame], refusal) for frame in missing[done:]]
    return outcomes


def _convert_scan(volume_id: str, source: Source, scan: Scan, label: Scan | None, settings: Settings) -> Outcome:
    """Build and write one volume."""
    try:
        check_values(scan)
        volume = build(volume_id, source, scan, label, settings.spacing, settings.modality)
    except Refusal as refusal:
        return Outcome(volume_id, refusal)
    except Exception as error:  # one scan that breaks our own code must not end the run
        if isolation.is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        text = " ".join(str(error).split())[:160]
        return Outcome(volume_id, Refusal("failed", f"the conversion failed on it ({type(error).__name__}: {text})"))
    write_volume(
        settings.root,
        volume_id,
        volume.image,
        volume.attributes,
        label=volume.label,
        label_info=volume.label_info,
        valid=volume.valid,
        label_original=volume.label_original,
        confirm=partial(confirm, settings.root, settings.token) if settings.token else None,
    )
    return Outcome(volume_id)
