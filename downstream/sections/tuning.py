"""The search of settings on validation patients, arm by arm."""

from __future__ import annotations

import dataclasses

from downstream import page, sentences
from downstream.blocks import Block, Section, Table
from downstream.comparison import Trial
from downstream.sections.view import View, files


def tuning(view: View) -> Section:
    """A table a measure that had anything to choose."""
    title = "What was tuned"
    if not view.trials:
        return Section(
            title, [page.paragraph("Nothing: every arm was trained with the settings of the suite.")], {"search": []}
        )
    blocks: list[Block] = [
        page.paragraph(
            "These settings, for each arm apart and with the same budget, on validation patients only. Test patients "
            "had no part in it."
        )
    ]
    for measure in dict.fromkeys(t.measure for t in view.trials):
        blocks += _of(view, measure, [t for t in view.trials if t.measure == measure])
    return Section(title, blocks, {"search": [dataclasses.asdict(trial) for trial in view.trials]})


def _of(view: View, measure: str, trials: list[Trial]) -> list[Block]:
    choices = list(dict.fromkeys(t.choice for t in trials))
    rows = []
    for arm in dict.fromkeys(t.arm for t in trials):
        own = {t.choice: t for t in trials if t.arm == arm}
        cells = [f"{own[c].score:.3f}{' *' if own[c].taken else ''}" if c in own else "" for c in choices]
        rows.append((view.name(measure, arm), *cells))
    one = trials[0]
    caption = (
        f"Mean {one.scored_by} of {one.patients} validation patients with "
        f"{sentences.patients_in_words(one.n_labelled)}, {one.seeds} seed{'' if one.seeds == 1 else 's'}. * taken: the "
        "best of the arm; of equals the first."
    )
    head = ["arm", *(choice.replace("=", " ") for choice in choices)]
    table = Table(files("search", measure), head, rows, caption, view.title(measure), numbers=range(1, len(head)))
    edge = [
        page.paragraph(
            "At least one arm took a value at the edge of the grid: a wider grid might serve it better.", "soft"
        )
    ]
    at_edge = len(choices) > 1 and any(t.taken and t.choice in (choices[0], choices[-1]) for t in trials)
    return [table, *(edge if at_edge else [])]
