"""The page of `inspect --html`: one HTML file that needs no other, readable without colours, scripts or a network.

A script only adds the slices of the volumes to their pictures (ssl3d.viewer).
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from preprocessing.duplicates import Near
from preprocessing.montage import Plane, planes, png
from preprocessing.ranking import RULES, Ranked
from preprocessing.refusal import REASONS
from preprocessing.report import Row
from preprocessing.slices import scan_of
from ssl3d.data.store import Store
from ssl3d.viewer import MOST_SCANS, embed, equip

_BINS = 24
_LOGARITHMIC = 50.0  # ratio of the largest to the smallest positive value from which on the axis is logarithmic
_MOST_ROWS = 100  # of a reason, or of pairs; the files in the store hold all
_WIDTH, _HEIGHT = 230, 80
_TALLEST = 0.5  # height of the planes of a volume, in their widths together

_STYLE = """
:root { --ink: #1c2430; --dim: #566173; --line: #d9dee6; --paper: #fff; --card: #f6f8fa; --bar: #2f6fb5;
  --warn: #9a4a00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --dim: #a3adbb; --line: #38414d; --paper: #14181e;
  --card: #1d232b; --bar: #6ea8e6; --warn: #f0a860 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1120px; padding: 2rem 1.5rem 4rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2.4rem 0 .8rem }
h3 { font-size: .95rem; margin: 1.2rem 0 .5rem; color: var(--dim); font-weight: 600 }
p { margin: .3rem 0 .8rem; color: var(--dim); max-width: 75ch }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: .7rem; margin: 1.2rem 0 }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem }
.cards dt { color: var(--dim); font-size: .82rem } .cards dd { margin: 0; font-size: 1.25rem; font-weight: 600 }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(232px, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { font-size: .82rem; color: var(--dim) }
svg { width: 100%; height: auto; display: block } svg rect { fill: var(--bar) } svg line { stroke: var(--line) }
svg text { fill: var(--dim); font-size: 10px }
table { border-collapse: collapse; width: 100%; font-size: .9rem } caption { text-align: left; color: var(--dim) }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere } th { font-weight: 600 } td.n, th.n { text-align: right }
.montage { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1rem;
  grid-auto-flow: dense }
.volume { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem }
@media screen { .volume:has(.viewer.open) { grid-column: 1 / -1 } }
.planes { background: #000; border-radius: 4px; padding: 3px }
.planes div { display: flex; gap: 3px; align-items: center; margin: 0 auto }
.planes img { min-width: 0; image-rendering: auto; display: block }
.volume figcaption { margin-top: .5rem } .volume b { color: var(--ink); overflow-wrap: anywhere }
.reasons { color: var(--warn); font-weight: 600 }
details { border-bottom: 1px solid var(--line); padding: .4rem 0 } summary { cursor: pointer }
summary code { font-weight: 600 } details ul { margin: .4rem 0; padding-left: 1.3rem; font-size: .88rem }
"""


@dataclass(frozen=True)
class Chart:
    """A small histogram: its title, the unit of the axis, and the numbers."""

    title: str
    unit: str
    values: np.ndarray


def page(
    name: str,
    store: Store,
    sections: Sequence[tuple[str, list[tuple[str, str]]]],
    charts: Sequence[tuple[str, list[Chart]]],
    ranked: Sequence[Ranked],
    refused: Sequence[Row],
    twins: Sequence[Near],
) -> str:
    """The HTML of a store called `name`. `sections`: tables of text; `ranked`: the volumes to show, worst first.

    The slices of the first MOST_SCANS of them can be looked through.
    """
    parts = [
        f"<header><h1>{escape(name)}</h1>{_cards(dict(sections[0][1]), len(refused), len(twins))}</header>",
        _montage(store, ranked),
        "".join(_chart_group(title, group) for title, group in charts),
        _refusals(refused),
        _pairs(twins),
        "<h2>Numbers</h2>" + "".join(_table(title, rows) for title, rows in sections if title != "volumes"),
    ]
    return equip(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}: what the store holds</title><style>{_STYLE}</style></head>"
        f"<body>{parts[0]}<main>{''.join(parts[1:])}</main></body></html>\n"
    )


def _cards(volumes: dict[str, str], refused: int, twins: int) -> str:
    shown = [(key, value) for key, value in volumes.items() if key != "store"]
    shown += [("refused", str(refused)), ("pairs that look alike", str(twins))]
    return (
        '<dl class="cards">'
        + "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in shown)
        + "</dl>"
    )


def _montage(store: Store, ranked: Sequence[Ranked]) -> str:
    if not ranked:
        return "<h2>Volumes</h2><p>The store holds no volume.</p>"
    volumes = "".join(_volume(store, item, place < MOST_SCANS) for place, item in enumerate(ranked))
    return (
        f"<h2>Volumes to look at first</h2><p>Ranked by points: {escape(RULES)}. Axial, coronal and sagittal planes"
        " through the middle of the foreground, true to scale; classes of labels are coloured, voxels that were not"
        f' measured are tinted blue.</p><div class="montage">{volumes}</div>'
    )


def _volume(store: Store, item: Ranked, slices: bool) -> str:
    """The figure of one volume; with `slices` all of it can be looked through."""
    volume_id = store.volume_id(item.row)
    spacing = " × ".join(f"{s:.3g}" for s in store.cell("spacing", item.row))
    shape = " × ".join(str(n) for n in store.cell("shape", item.row))
    modality = ", ".join(store.cell("modality", item.row))
    why = f'<span class="reasons">{escape(", ".join(item.reasons))}</span>' if item.reasons else "nothing found"
    try:
        shown = _strip(volume_id, planes(store, item.row))
        shown = embed(scan_of(store, item.row), shown) if slices else shown
    except (ValueError, OSError):
        shown = "<p>It cannot be read: see ssl3d inspect --verify.</p>"
    return (
        f'<figure class="volume">{shown}<figcaption><b>{escape(volume_id)}</b> · {item.score:.2f} points: {why}<br>'
        f"{escape(modality)} · {shape} voxels (z, y, x) of {spacing} mm</figcaption></figure>"
    )


def _strip(volume_id: str, cuts: Sequence[Plane]) -> str:
    """The planes beside each other on one scale, narrower where they would be taller than half their width."""
    share = min(1.0, _TALLEST * sum(cut.width_mm for cut in cuts) / max(cut.height_mm for cut in cuts))
    pictures = "".join(
        f'<img style="flex:{cut.width_mm:.0f} 1 0;aspect-ratio:{cut.width_mm:.0f}/{cut.height_mm:.0f}"'
        f' alt="{cut.name} plane of {escape(volume_id)}"'
        f' src="data:image/png;base64,{base64.b64encode(png(cut)).decode()}">'
        for cut in cuts
    )
    return f'<div class="planes"><div style="width:{100 * share:.0f}%">{pictures}</div></div>'


def _chart_group(title: str, charts: Sequence[Chart]) -> str:
    return f'<h2>{escape(title)}</h2><div class="charts">{"".join(_chart(chart) for chart in charts)}</div>'


def _chart(chart: Chart) -> str:
    """A histogram as SVG; what it shows is also said in words."""
    values = np.asarray(chart.values, dtype=float)
    low, high, median = float(values.min()), float(values.max()), float(np.median(values))
    logarithmic = low > 0 and high / low > _LOGARITHMIC
    constant = high - low <= 1e-3 * max(abs(low), abs(high))  # rounding is no spread
    span = (low - 0.5, low + 0.5) if constant else (low, high)
    values = np.clip(values, *span)
    edges = np.geomspace(*span, _BINS + 1) if logarithmic else np.linspace(*span, _BINS + 1)
    counts, _ = np.histogram(values, edges)
    width, heights = _WIDTH / _BINS, counts / counts.max() * (_HEIGHT - 8)
    bars = "".join(
        f'<rect x="{k * width + 0.5:.1f}" y="{_HEIGHT - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}">'
        f"<title>{edges[k]:.4g} to {edges[k + 1]:.4g}: {n}</title></rect>"
        for k, (n, height) in enumerate(zip(counts, heights))
        if n
    )
    unit = f" {chart.unit}" if chart.unit else ""
    words = f"{len(values)} values from {low:.4g} to {high:.4g}{unit}, median {median:.4g}{unit}"
    scale = ", logarithmic axis" if logarithmic else ""
    label = f"{escape(chart.title)}: {words}"
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT + 16}" role="img" aria-label="{label}">{bars}'
        f'<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/><text x="0" y="{_HEIGHT + 12}">{span[0]:.4g}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 12}" text-anchor="end">{span[1]:.4g}{unit}</text></svg>'
        f"<figcaption>{escape(chart.title)}: median {median:.4g}{unit}{scale}</figcaption></figure>"
    )


def _refusals(refused: Sequence[Row]) -> str:
    """Refused sources by reason, the most frequent first, each with its sentence."""
    if not refused:
        return "<h2>Refused</h2><p>Nothing was refused.</p>"
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in refused:
        groups[row[1]].append(row)
    parts = [f"<h2>Refused</h2><p>{len(refused)} sources; all are listed in refused.csv in the store.</p>"]
    for reason, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        shown = rows[:_MOST_ROWS]
        lines = "".join(f"<li><code>{escape(source)}</code>: {escape(why)}</li>" for source, _, why in shown)
        more = f"<li>and {len(rows) - _MOST_ROWS} more</li>" if len(rows) > _MOST_ROWS else ""
        meaning = escape(REASONS.get(reason, ""))
        is_open = " open" if len(rows) <= 5 else ""
        parts.append(
            f"<details{is_open}><summary><code>{escape(reason)}</code> {len(rows)}: {meaning}</summary>"
            f"<ul>{lines}{more}</ul></details>"
        )
    return "".join(parts)


def _pairs(twins: Sequence[Near]) -> str:
    if not twins:
        return "<h2>Pairs that look alike</h2><p>No two volumes look alike.</p>"
    rows = "".join(
        f"<tr><td>{escape(near.volume)}</td><td>{escape(near.other)}</td>"
        f'<td>{"yes" if near.same_subject else "no"}</td><td class="n">{near.correlation:.4f}</td></tr>'
        for near in sorted(twins, key=lambda near: -near.correlation)[:_MOST_ROWS]
    )
    return (
        f"<h2>Pairs that look alike</h2><p>{len(twins)} pairs whose thumbnails correlate above 0.99; all are listed in"
        " duplicates.csv in the store. Nothing is removed: it may be one scan twice, or two scans of one patient.</p>"
        '<table><thead><tr><th scope="col">volume</th><th scope="col">other</th><th scope="col">same subject</th>'
        f'<th scope="col" class="n">correlation</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in rows)
    return f"<h3>{escape(title)}</h3><table><tbody>{cells}</tbody></table>"
