"""Volume ids: no two sources of a store share one, and a source that comes again finds its own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from preprocessing.ledger import Entry
from preprocessing.source import Source, clean_id


def settle_ids(
    sources: Sequence[Source], digests: Sequence[str], entries: Mapping[str, Entry], held: AbstractSet[str]
) -> None:
    """Make ids unique in place: what the ledger knows keeps its id, what is new gets one that no other has.

    New ids that collide take their folder's name before them, then a number behind. `digests`: contents of the sources.
    `entries`: the ledger. `held`: ids whose volumes are in the store, or were left out of it as duplicates: denied to
    every other content.
    """
    counts = Counter(source.id.lower() for source in sources)
    known: dict[tuple[str, str], list[str]] = {}
    for source_id, entry in entries.items():
        known.setdefault((entry.name, entry.content), []).append(source_id)
    taken = {name.lower() for name in held}
    fresh: list[Source] = []
    for source, digest in zip(sources, digests):
        ids = known.get((name_digest(source), digest))
        if ids and source.problem is None:
            source.id = ids.pop(0)
            taken.add(source.id.lower())
        else:
            fresh.append(source)
    for source in fresh:
        base = source.id
        if counts[base.lower()] > 1 and source.folder:
            base = clean_id(f"{source.folder}_{base}")
        number, source.id = 1, base
        while source.id.lower() in taken:
            number += 1
            source.id = f"{base}-{number}"
        taken.add(source.id.lower())


def name_digest(source: Source) -> str:
    """Digest of what a source is called before ids are made unique; folders may be named after patients."""
    return hashlib.blake2b(f"{source.folder}/{source.id}".encode(), digest_size=6).hexdigest()
