"""inspect --verify: is every byte of a store what was written?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ssl3d.data import format as fmt
from ssl3d.data.damage import damaged_objects, note_damage
from ssl3d.data.encode import METADATA
from ssl3d.data.machine import available_cores
from ssl3d.data.objects import Objects, StoreError, no_store, open_objects
from ssl3d.data.store import Store
from ssl3d.data.thumbnail import SIDE
from ssl3d.terminal import progress

_EXTRAS = {fmt.LABELS: "has_label", fmt.VALID: "has_valid", fmt.LABELS_ORIGINAL: "has_label_original"}


@dataclass
class VerifyReport:
    """`checked` volumes; `damaged`: {volume id: keys of its objects that are missing or not what was written}.

    `derived`: files beside the volumes that are missing or do not fit; every conversion writes them anew.
    `noted`: the store remembers the damaged volumes, so that the next conversion makes them again.
    """

    checked: int
    damaged: dict[str, list[str]] = field(default_factory=dict)
    derived: list[str] = field(default_factory=list)
    noted: bool = True

    @property
    def exit_code(self) -> int:
        """1 when anything is damaged."""
        return 1 if self.damaged or self.derived else 0

    @property
    def text(self) -> str:
        """What was found, a line a damaged object, and what to do."""
        if self.exit_code == 0:
            return f"verified {self.checked} volumes: every object is what was written"
        keys = [key for name in sorted(self.damaged) for key in self.damaged[name]] + self.derived
        lines = [f"damaged: {key}" for key in keys]
        lines.append(f"verified {self.checked} volumes: {len(self.damaged)} damaged")
        if self.noted:
            lines.append("run ssl3d convert again with the same sources to make them again")
        else:
            lines.append("they could not be noted in the store: run --verify where it can be written, then convert")
        return "\n".join(lines)


def verify(store: str | Path) -> VerifyReport:
    """Compare every shard of a store, labels and valid included, with the digest recorded when it was written.

    Missing objects, metadata that does not parse and volumes of the index that are gone count as damaged. What is found
    is noted in the store (damaged.json). Raises FileNotFoundError when there is no store, StoreError when it is out of
    reach.
    """
    objects = open_objects(store)
    if not objects.exists(METADATA):
        raise no_store(store)
    committed = frozenset(objects.holding(fmt.VOLUMES, METADATA))
    expected, derived = _expected(objects, store)
    ids = sorted(committed | expected.keys())
    report = VerifyReport(len(ids), derived=derived)

    def check(volume_id: str) -> list[str]:
        lost = [f"{kind}/{volume_id}/{METADATA}" for kind in expected.get(volume_id, ())]
        lost = [key for key in lost if not objects.exists(key)]
        return lost + (damaged_objects(store, volume_id) if volume_id in committed else [])

    with progress("verifying", len(ids)) as meter:
        for done, (volume_id, keys) in enumerate(_in_order(check, ids), start=1):
            if keys:
                report.damaged[volume_id] = keys
            meter.update(done, f"({len(report.damaged)} damaged)" if report.damaged else "")
    if report.damaged:
        try:
            note_damage(store, report.damaged)
        except StoreError:
            report.noted = False
    return report


def _in_order(check: Callable[[str], list[str]], ids: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(id, what is damaged of it), a volume a core at once: a shard is read whole, so few are in memory together."""
    cores = available_cores()
    with ThreadPoolExecutor(cores, thread_name_prefix="ssl3d-verify") as pool:
        for first in range(0, len(ids), 16 * cores):
            part = ids[first : first + 16 * cores]
            yield from zip(part, pool.map(check, part))


def _expected(objects: Objects, store: str | Path) -> tuple[Mapping[str, list[str]], list[str]]:
    """({volume id: kinds of arrays it has} by the index, files beside the volumes that are damaged or missing)."""
    if not objects.exists(fmt.INDEX_FILE):
        return {}, [fmt.INDEX_FILE]
    try:
        table = Store(store).table
    except (ValueError, OSError):
        return {}, [fmt.INDEX_FILE]
    columns = {kind: table[name].to_pylist() for kind, name in _EXTRAS.items()}
    expected = {
        volume_id: [fmt.VOLUMES, *(kind for kind, present in columns.items() if present[row])]
        for row, volume_id in enumerate(table["id"].to_pylist())
    }
    voxels = 2 * SIDE**3 * len(expected)
    fits = objects.exists(fmt.THUMBNAILS_FILE) and 0 < objects.size(fmt.THUMBNAILS_FILE) - voxels < 2 * SIDE**3
    return expected, [] if fits else [fmt.THUMBNAILS_FILE]
