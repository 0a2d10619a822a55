"""inspect: what a store holds, in words and as one self-contained page."""

from __future__ import annotations

import base64
import html as html_text
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from preprocessing.montage import montage
from preprocessing.report import read_refused
from ssl3d.data.objects import open_objects
from ssl3d.data.store import Store, open_store

Section = tuple[str, list[tuple[str, str]]]


def inspect(store: str | Path, html: str | Path | None = None) -> str:
    """A report of counts, spacings, intensities, flags and refusals; with `html`, also a page with a montage.

    Raises FileNotFoundError naming a store that is not there.
    """
    opened = open_store(store)
    sections = _sections(opened)
    if html is not None:
        picture = montage(opened) if len(opened) else b""
        Path(html).write_text(_page(str(store), sections, picture), encoding="utf-8")
    return "\n".join(line for title, rows in sections for line in [title, *(f"  {k}: {v}" for k, v in rows)])


def _sections(store: Store) -> list[Section]:
    sections = [("volumes", _volumes(store))]
    if len(store):
        sections.append(("spacing and size", _geometry(store)))
        sections.append(("intensity", _intensity(store)))
    flags = Counter(flag for row in store.index["flags"] for flag in row)
    sections.append(("flags", _counts(flags) or [("none", "no volume is flagged")]))
    refused = Counter(reason for _, reason, _ in read_refused(open_objects(store.path)))
    sections.append(("refused", _counts(refused) or [("none", "nothing was refused")]))
    return sections


def _volumes(store: Store) -> list[tuple[str, str]]:
    index = store.index
    size = int(index["bytes"].sum()) if len(index) else 0
    modalities = Counter(name for row in index["modality"] for name in row)
    return [
        ("store", store.path),
        ("volumes", str(len(index))),
        ("subjects", str(index["subject"].nunique())),
        ("with labels", str(int(index["has_label"].sum()))),
        ("with targets", str(sum(bool(targets) for targets in index["targets"]))),
        ("with voxels outside the scan", str(int(index["has_valid"].sum()))),
        ("channels by modality", ", ".join(f"{name} {n}" for name, n in sorted(modalities.items())) or "none"),
        ("size of the volumes", f"{size / 2**20:.1f} MiB"),
    ]


def _spread(values: Iterable[float]) -> str:
    numbers = np.asarray(list(values), dtype=float)
    return f"median {np.median(numbers):.4g}, from {numbers.min():.4g} to {numbers.max():.4g}"


def _geometry(store: Store) -> list[tuple[str, str]]:
    spacing = np.array(store.index["spacing"].tolist())
    shape = np.array(store.index["shape"].tolist())
    rows = [(f"spacing {name} (mm)", _spread(spacing[:, axis])) for axis, name in enumerate("zyx")]
    return rows + [(f"size {name} (voxels)", _spread(shape[:, axis])) for axis, name in enumerate("zyx")]


def _intensity(store: Store) -> list[tuple[str, str]]:
    """Foreground numbers by modality, physical units."""
    by_modality: dict[str, list[dict[str, float]]] = {}
    for modalities, stats in zip(store.index["modality"], store.index["foreground_stats"]):
        for modality, channel in zip(modalities, stats):
            by_modality.setdefault(modality, []).append(channel)
    rows = []
    for modality, channels in sorted(by_modality.items()):
        for key in ("percentile_00_5", "percentile_50", "percentile_99_5", "mean", "std"):
            rows.append((f"{modality} foreground {key}", _spread(channel[key] for channel in channels)))
    return rows


def _counts(counter: Counter[str]) -> list[tuple[str, str]]:
    return [(name, str(count)) for name, count in sorted(counter.items())]


def _page(title: str, sections: list[Section], picture: bytes) -> str:
    """One HTML file that needs no other."""
    tables = "".join(
        f"<h2>{html_text.escape(name)}</h2><table>"
        + "".join(f"<tr><th>{html_text.escape(k)}</th><td>{html_text.escape(v)}</td></tr>" for k, v in rows)
        + "</table>"
        for name, rows in sections
    )
    image = f'<img alt="montage" src="data:image/png;base64,{base64.b64encode(picture).decode()}">' if picture else ""
    style = "body{font-family:sans-serif;margin:2em} th{text-align:left;padding-right:2em;font-weight:normal}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html_text.escape(title)}</title>'
        f"<style>{style}</style></head><body><h1>{html_text.escape(title)}</h1>{tables}{image}</body></html>"
    )
