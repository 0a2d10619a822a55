"""A worker's job: one source, converted in a child process that a hostile file may kill, hang or fill.

Light to import: a worker only hands its jobs on; what reads and writes is imported by its child.
"""

from __future__ import annotations

from dataclasses import dataclass

from preprocessing import isolation
from preprocessing.refusal import Refusal
from preprocessing.source import Source
from ssl3d.data import format as fmt
from ssl3d.data.objects import open_objects


@dataclass(frozen=True)
class Settings:
    """Where to write, the spacing ("keep", "iso1" or (z, y, x) mm), the modality asked for.

    `allow_gaps`: interpolate missing slices. `timeout_s`: seconds a source may take to its next volume.
    `memory_bytes`: what one source may take beyond the program itself; None: no ceiling. `token`: of the run that holds
    the store (preprocessing.lock); a worker that outlived its run commits nothing. "": there is no lock to look at.
    """

    root: str
    spacing: str | tuple[float, float, float]
    modality: str
    allow_gaps: bool = False
    timeout_s: float = 600.0
    memory_bytes: int | None = None
    token: str = ""


@dataclass
class Outcome:
    """One volume, or one source that became none: `refusal` is None when the volume is in the store."""

    volume_id: str
    refusal: Refusal | None = None


def convert_source(source: Source, settings: Settings) -> list[Outcome]:
    """Convert what is not in the store yet of a source, in a child process; one outcome a volume.

    A scan that cannot be converted is an outcome, also when its reader dies, hangs or outgrows its memory; a store that
    cannot be written (OSError) ends the run. A long series that still makes progress when its time is over goes on.
    """
    while True:
        before = _missing(source, settings)
        try:
            return isolation.run(
                convert_here,
                source,
                settings,
                timeout_s=settings.timeout_s,
                memory_bytes=settings.memory_bytes,
                imports="preprocessing.work",
            )
        except Refusal as refusal:
            after = _missing(source, settings)
            if after == before:
                return [Outcome(name, refusal if name in after else None) for name in source.volume_ids()]


def convert_here(source: Source, settings: Settings) -> list[Outcome]:
    """What the child does."""
    from preprocessing import work  # all the readers: only the child needs them

    return work.convert_here(source, settings)


def _missing(source: Source, settings: Settings) -> list[str]:
    """Ids of the source's volumes that are not in the store."""
    objects = open_objects(settings.root)
    return [name for name in source.volume_ids() if not objects.exists(f"{fmt.VOLUMES}/{name}/zarr.json")]
