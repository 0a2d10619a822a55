"""Title, main conclusions, and warnings that change how the rest is read."""

from __future__ import annotations

from collections.abc import Sequence

from downstream import page, sentences
from downstream.blocks import Html, Section
from downstream.evaluation import Evaluation
from downstream.sections.view import View

FEW = 5  # conclusions that stand as paragraphs


def title(evaluation: Evaluation) -> str:
    return f"Label efficiency on {evaluation.dataset}"


def conclusions(view: View) -> list[str]:
    """The main conclusion, a sentence a measure and arm; says so when nothing was compared, or nothing was learnt."""
    found = [sentences.conclusion(group) for group in view.groups().values()]
    found += [said for measure in view.measures if (said := sentences.guessing(view.select(measure)))]
    return found or ["Nothing was compared: no arm has a baseline beside it."]


def head(view: View) -> Section:
    """What stands at the top of the page."""
    evaluation = view.evaluation
    patients = max(p.score.patients + p.score.dropped_patients for p in view.points)
    facts = f"Suite {evaluation.suite_name}; {patients} test patients"
    facts += "." if evaluation.suite.get("target") else "; scores on the original grid of each scan."
    said = conclusions(view)
    blocks = [
        Html(f"<h1>{page.text(title(evaluation))}</h1>"),
        page.paragraph(facts, "soft"),
        Html(f'<div class="lead">{lead(said)}</div>'),
    ]
    if evaluation.warnings:
        lines = "".join(f"<p>{page.text(line)}</p>" for line in evaluation.warnings)
        blocks.append(Html(f'<div class="warning">{lines}</div>'))
    data = {"title": title(evaluation), "conclusions": said, "warnings": list(evaluation.warnings)}
    return Section("", blocks, data)


def lead(said: Sequence[str]) -> str:
    """Conclusions as paragraphs, many as a list."""
    if len(said) <= FEW:
        return "".join(f"<p>{page.text(line)}</p>" for line in said)
    return page.listing(said).content
