"""Every point in words, and what remains when the points are judged together."""

from __future__ import annotations

from downstream import page, sentences
from downstream.blocks import Block, Html, Section
from downstream.sections.view import View

LONG = 12  # sentences: more of a measure are folded away


def words(view: View) -> Section:
    """A list of sentences a measure and arm."""
    blocks: list[Block] = []
    joint = []
    for measure in view.measures:
        groups = {arm: group for (own, arm), group in view.groups().items() if own == measure}
        lines = []
        for arm, group in groups.items():
            lines += [page.heading(f"{view.title(measure)}, {arm}"), page.listing(sentences.sentence(p) for p in group)]
            together = sentences.joint_statement(group)
            if together:
                joint.append(together)
                lines.append(page.paragraph(together, "soft"))
        content = "\n".join(line.content for line in lines)
        if sum(map(len, groups.values())) > LONG:
            content = f"<details><summary>{page.text(view.title(measure))}</summary>{content}</details>"
        blocks.append(Html(content))
    return Section("In words", blocks, {"joint": joint})
