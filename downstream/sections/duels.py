"""Arms against each other: every two of a network, paired."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from downstream import page, sentences
from downstream.blocks import Block, Section, Table
from downstream.comparison import METRICS
from downstream.pairs import Pair, pairs
from downstream.sections.numbers import between
from downstream.sections.view import MARKS, View, files

INTRO = (
    "Which of two arms is better is another question than whether each is better than the arm without pre-training: "
    "here their scores are subtracted, patient by patient, on the same labelled patients and seeds. All pairs and "
    "amounts of labels of a measure are one family for Holm's correction. A pair with a single pre-training run on one "
    "side is about that checkpoint."
)
ALPHA = 0.05


def duels(view: View) -> Section | None:
    """Sentences and a table for each measure with two arms or more of one network; None without one."""
    blocks: list[Block] = []
    every: list[Pair] = []
    for measure in view.measures:
        metric = view.leading(measure)
        rows = view.rows[(view.rows["schedule"] == measure) & (view.rows["metric"] == metric)]
        found = pairs(rows, view.evaluation.baselines, metric)
        if found:
            every += found
            blocks += [page.heading(view.title(measure)), page.listing(said(found)), _table(view, measure, found)]
    if not blocks:
        return None
    data = {"pairs": [dataclasses.asdict(pair) | {"better": pair.better()} for pair in every]}
    return Section("Arms against each other", [page.paragraph(INTRO, "soft"), *blocks], data)


def said(found: Sequence[Pair]) -> list[str]:
    """The pairs that stay apart after Holm's correction, a sentence for each two arms; or that none does."""
    sure: dict[tuple[str, str], list[int]] = {}
    for pair in found:
        better = pair.better()
        if better is not None and pair.p_holm is not None and pair.p_holm <= ALPHA:
            worse = pair.other if better == pair.one else pair.one
            sure.setdefault((better, worse), []).append(pair.n_labelled)
    family = found[0].family
    over = f"after Holm over {family} comparison{'' if family == 1 else 's'}"
    if not sure:
        return [f"No two arms are distinguishable {over}: their order is not shown by these numbers."]
    return [
        f"{better} is better than {worse} {sentences.at_labelled(amounts)} ({over})."
        for (better, worse), amounts in sure.items()
    ]


def _table(view: View, measure: str, found: Sequence[Pair]) -> Table:
    metric = METRICS[view.leading(measure)]
    rows = []
    for pair in found:
        digits = max(metric.decimals + 1, sentences.decimals_for(pair.difference, metric))
        rows.append((
            pair.n_labelled, pair.one, pair.other, sentences.number(pair.difference.mean, digits, signed=True),
            between(pair.difference, digits), pair.verdict(), sentences.p_cell(pair.p), sentences.p_cell(pair.p_holm),
        ))  # fmt: skip
    head = ("labelled", "arm", "against", "difference", "95 % interval", "verdict", "p", "after Holm")
    caption = f"Paired differences in {metric.name}; verdicts each for itself, by the interval."
    title = f"{view.title(measure)}: pairs"
    return Table(files("pairs", measure), head, rows, caption, title, (0, 3, 4, 6, 7), (5,), MARKS, folded=True)
