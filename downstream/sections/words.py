"""Every point in words, and what remains when the points are judged together."""

from __future__ import annotations

from downstream import page, sentences
from downstream.blocks import Block, Section
from downstream.sections.view import View


def words(view: View) -> Section:
    """A list of sentences a measure and arm."""
    blocks: list[Block] = []
    joint = []
    for (measure, arm), group in view.groups().items():
        blocks += [page.heading(f"{view.title(measure)}, {arm}"), page.listing(sentences.sentence(p) for p in group)]
        together = sentences.joint_statement(group)
        if together:
            joint.append(together)
            blocks.append(page.paragraph(together, "soft"))
    return Section("In words", blocks, {"joint": joint})
