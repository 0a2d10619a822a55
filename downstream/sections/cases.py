"""Pictures of test cases with contours: the best and worst by score, and by the difference to the baseline."""

from __future__ import annotations

from typing import Any

from downstream import page, pictures, sentences, slices
from downstream.blocks import Html, Section
from downstream.comparison import patient_scores
from downstream.sections.view import View
from ssl3d.viewer import MOST_SCANS, class_colours, embed

MOST_ARMS = 5  # in a picture: of a method with several runs the first is shown


def cases(view: View) -> Section | None:
    """None where no prediction was kept. The slices of the first MOST_SCANS cases can be looked through."""
    loaded = [pictures.renamed(pictures.load_case(path), view.evaluation.renamed) for path in view.evaluation.cases]
    if not loaded:
        return None
    measure = loaded[0].measure or view.measures[0]
    n = loaded[0].n_labelled or view.middle(measure)
    scores = patient_scores(view.evaluation.results, measure, "dice", n)
    chosen = pictures.choose(loaded, scores, view.baselines)
    if not chosen:
        return None
    legend = " ".join(
        f'<span class="key"><span style="background:{colour}"></span>{page.text(loaded[0].classes[value])}</span>'
        for value, colour in class_colours(loaded[0].classes).items()
    )
    intro = (
        f"{view.title(measure)} on {sentences.patients_in_words(n)}. Of all {len(scores)} test patients the best and "
        "worst by mean Dice over arms and seeds, and those for whom pre-training changed most: extremes, no examples; "
        "then some in between. The predictions are those of one seed. Axial slice with the "
        "largest labelled area, the patient's left on the right. White lines: the reference under a prediction. "
        "Coloured lines:"
    )
    blocks = [Html(f"<p>{page.text(intro)} {legend}</p>")]
    data: list[dict[str, Any]] = []
    for place, (case, why) in enumerate(chosen):
        names = {arm: view.name(measure, arm) for arm in view.pictured(case.predictions)[:MOST_ARMS]}
        named, arms = pictures.renamed(case, names), list(names.values())
        rank = int(scores.mean(axis=1).rank(ascending=False, method="first")[case.patient])
        values = "; ".join(f"{arm} {named.dice[arm]:.3f}" for arm in arms if arm in named.dice)
        caption = f"{why.capitalize()}: patient {case.patient}, rank {rank} of {len(scores)} test patients" + (
            f"; Dice of these predictions: {values}." if values else "."
        )
        still = page.image(pictures.png(pictures.montage(named, arms)), caption)
        shown = embed(slices.scan_of(named, arms), still) if place < MOST_SCANS else still
        blocks.append(Html(page.figure(shown, caption)))
        data.append({"patient": case.patient, "why": why, "rank": rank, "of": len(scores), "dice": dict(case.dice)})
    return Section("Cases", blocks, {"cases": data})
