"""What was found, in lines for the user: a data set, a plain tree, a folder of DICOM files, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from preprocessing.drafts import Draft
from preprocessing.layouts.plain import NAME as PLAIN
from preprocessing.source import Root, Source
from ssl3d.data.subjects import PREFIX

_DICOM = "DICOM"
_MANY = 4  # plain files a subject, on average, from which on the folders may well be studies or modalities


def summaries(found: Sequence[tuple[Draft, Source]], images: Sequence[tuple[Root, Source]]) -> Iterator[str]:
    """Lines such as "found 174 volumes in Task04_Hippocampus (MSD): 113 subjects, 174 labelled". Sorted."""
    groups: dict[tuple[str, str], list[Source]] = {}
    for draft, source in found:
        name = draft.dataset or draft.root.typed
        groups.setdefault((name, draft.layout), []).append(source)
    for root, source in images:
        groups.setdefault((root.typed, _DICOM), []).append(source)
    for (name, layout), sources in sorted(groups.items()):
        usable = [source for source in sources if source.problem is None]
        volumes = sum(len(source.volume_ids()) for source in usable)
        subjects = len({source.subject for source in usable})
        details = [count(subjects, "subject"), f"{sum(source.labelled for source in usable)} labelled"]
        if len(usable) < len(sources):
            details.append(f"{len(sources) - len(usable)} refused")
        yield f"found {count(volumes, 'volume')} in {name} ({layout}): {', '.join(details)}"
        guessed = [source.subject for source in usable if source.subject.startswith(PREFIX)]  # those of a list are not
        if layout == PLAIN and guessed and len(guessed) >= _MANY * len(set(guessed)):
            yield (
                "subjects of plain files are their outermost folders: where such a folder is no patient, say whose "
                "scan is whose in a list (a CSV with the columns path and subject)"
            )


def count(number: int, what: str) -> str:
    """ "1 volume", "2 volumes"; "series" stays."""
    return f"{number} {what}" if number == 1 or what.endswith("s") else f"{number} {what}s"
