"""Several data sets on one page: what was found on each, side by side, and the matrix of who gains where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from downstream import page
from downstream.blocks import Block, Html, Section
from downstream.sections.curves import curves
from downstream.sections.head import conclusions, lead
from downstream.sections.numbers import numbers
from downstream.sections.transfer import transfer
from downstream.sections.view import View


def title_of_several(views: Sequence[View]) -> str:
    return f"Label efficiency on {len(views)} data sets"


def of_several(views: Sequence[View]) -> Sequence[Section]:
    """Conclusions and curves of each data set, one section a data set, between them the transfer matrix."""
    sets = [view.evaluation.dataset for view in views]
    said = {name: conclusions(view) for name, view in zip(sets, views)}
    blocks: list[Block] = [Html(f"<h1>{page.text(title_of_several(views))}</h1>")]
    blocks.append(
        page.paragraph(
            "Scores of different data sets are not comparable: each has its own curve, scale and arms.", "soft"
        )
    )
    for name, lines in said.items():
        blocks.append(Html(f'<h3>{page.text(name)}</h3><div class="lead">{lead(lines)}</div>'))
    warnings = list(dict.fromkeys(w for view in views for w in view.evaluation.warnings))
    if warnings:
        blocks.append(Html('<div class="warning">' + "".join(f"<p>{page.text(w)}</p>" for w in warnings) + "</div>"))
    flat = [line for lines in said.values() for line in lines]
    data = {"title": title_of_several(views), "conclusions": flat, "warnings": warnings}
    sections = [Section("", blocks, data), transfer(views)]
    points = {}
    for number, (name, view) in enumerate(zip(sets, views), 1):
        drawn, tables = curves(view), numbers(view)
        own = [replace(block, name=f"{number}_{block.name}") for block in (*drawn.blocks, *tables.blocks)
               if not isinstance(block, Html)]  # fmt: skip
        sections.append(Section(name, own))
        points[name] = tables.data
    sections[-1] = replace(sections[-1], data={"datasets": points})
    return sections
