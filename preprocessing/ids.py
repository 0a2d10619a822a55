"""Volume ids: unique in a store, and a source that comes again finds its own, whatever comes before or beside it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from preprocessing.ledger import Entry
from preprocessing.source import Source, clean_id

_DIGITS = 8  # of the content's digest


def settle_ids(
    sources: Sequence[Source], digests: Sequence[str], entries: Mapping[str, Entry], held: AbstractSet[str]
) -> None:
    """Make ids unique in place: what the ledger knows keeps its id, what is new gets one that no other has.

    `digests`: contents of the sources. `entries`: the ledger. `held`: ids whose volumes are in the store, or were left
    out of it as duplicates: denied to every other content. Sources that are refused already get no part in it.
    """
    known: dict[tuple[str, str], list[str]] = {}
    for source_id, entry in sorted(entries.items()):
        known.setdefault((entry.name, entry.content), []).append(source_id)
    taken = {name.lower() for name in held}
    fresh: list[tuple[Source, str]] = []
    for source, digest in zip(sources, digests):
        if source.problem is not None:
            continue
        ids = known.get((name_digest(source), digest))
        if ids:
            source.id = ids.pop(0)
            taken.update(name.lower() for name in (source.id, *source.volume_ids()))
        else:
            fresh.append((source, digest))
    _assign(fresh, taken)


def _assign(fresh: Sequence[tuple[Source, str]], taken: set[str]) -> None:
    """Unique ids for new sources, each with the digest of its content; `taken` lower-case ids, extended.

    An id that nothing else has stays. Those that collide get their data set's name in front, or where that is no help
    (and in plain trees, whose folders may be called after patients) digits of their content behind, and copies of one
    file a number: nothing that depends on the order of the sources.
    """
    plain = Counter(source.id.lower() for source, _ in fresh)
    prefixed = Counter(clean_id(f"{source.folder}_{source.id}").lower() for source, _ in fresh)
    for source, digest in fresh:
        base = source.id
        prefix = clean_id(f"{source.folder}_{base}")
        names = [base] if plain[base.lower()] == 1 else []
        names += [prefix] if source.folder and prefixed[prefix.lower()] == 1 else []
        names.append(f"{base}-{digest[:_DIGITS]}")
        number = 1
        source.id = names.pop(0)
        while not taken.isdisjoint(name.lower() for name in (source.id, *source.volume_ids())):
            number += not names
            source.id = names.pop(0) if names else f"{base}-{digest[:_DIGITS]}-{number}"
        taken.update(name.lower() for name in (source.id, *source.volume_ids()))


def name_digest(source: Source) -> str:
    """Digest of what a source is called before ids are made unique; folders may be named after patients."""
    return hashlib.blake2b(f"{source.folder}/{source.id}".encode(), digest_size=6).hexdigest()
