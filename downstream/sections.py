"""The sections of an evaluation's report: plain functions from an evaluation and its points to HTML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from downstream import curve, page, pictures, sentences
from downstream.comparison import BASELINES, MEASURES, METRICS, Point, Trial, patient_scores
from downstream.evaluation import Evaluation
from downstream.statistics import Estimate

MARKS = ("better", "worse")


def by_arm(points: Iterable[Point], metric: str = "dice") -> dict[tuple[str, str], list[Point]]:
    """{(measure, arm): its points with a baseline}, in the order of the points."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        if point.metric == metric and not point.is_baseline and point.difference is not None:
            groups.setdefault((point.measure, point.arm), []).append(point)
    return groups


def conclusions(points: Sequence[Point]) -> list[str]:
    """The main conclusion, a sentence a measure and arm; says so when nothing was compared."""
    found = [sentences.conclusion(group) for group in by_arm(points).values()]
    return found or ["Nothing was compared: no arm has a baseline beside it."]


def head(evaluation: Evaluation, points: Sequence[Point]) -> list[str]:
    """Title, subtitle, conclusion, and warnings that change how the rest is read."""
    test = {p.score.patients + p.score.dropped_patients for p in points}
    facts = f"Suite {evaluation.suite_name}; {max(test)} test patients; scores on the original grid of each scan."
    lead = "".join(f"<p>{page.text(line)}</p>" for line in conclusions(points))
    warnings = "".join(f"<p>{page.text(line)}</p>" for line in evaluation.warnings)
    return [
        f"<h1>{page.text(title(evaluation))}</h1>",
        f'<p class="soft">{page.text(facts)}</p>',
        f'<div class="lead">{lead}</div>',
        f'<div class="warning">{warnings}</div>' if warnings else "",
    ]


def title(evaluation: Evaluation) -> str:
    return f"Label efficiency on {evaluation.dataset}"


def figure(points: Sequence[Point]) -> list[str]:
    """The curve."""
    caption = (
        "Above: mean foreground Dice on the test patients. Below: the same, minus the arm without pre-training, paired "
        "by patient, labelled subset and seed. Bars: 95 % intervals over labelled subsets with their seeds and over "
        "patients, each point by itself. Judge differences by the lower row: bars above may overlap although the "
        "paired difference is clear."
    )
    drawing = curve.svg(curve.draw(points)).replace(
        "<svg", f'<svg role="img" aria-label="{page.text(curve.describe(points))}"', 1
    )
    return [page.figure(drawing, caption)]


def words(points: Sequence[Point]) -> list[str]:
    """Every point in words, and what remains when the points are judged together."""
    lines = ["<h2>In words</h2>"]
    for (measure, arm), group in by_arm(points).items():
        lines.append(f"<h3>{page.text(MEASURES.get(measure, measure))}, {page.text(arm)}</h3>")
        lines.append(page.listing(sentences.sentence(p) for p in group))
        joint = sentences.joint_statement(group)
        lines.append(f'<p class="soft">{page.text(joint)}</p>' if joint else "")
    return lines


def numbers(points: Sequence[Point]) -> list[str]:
    """All scores and differences, a table a measure and metric; those of distances folded away."""
    lines = ["<h2>Numbers</h2>"]
    for measure in dict.fromkeys(p.measure for p in points):
        for metric in dict.fromkeys(p.metric for p in points if p.measure == measure):
            about = METRICS[metric]
            unit = "" if about.unit == about.name else " in mm"
            better = "higher" if about.higher_is_better else "lower"
            heading = page.text(f"{MEASURES.get(measure, measure)}: {about.name}{unit}, {better} is better")
            content = _numbers_table([p for p in points if p.measure == measure and p.metric == metric])
            if metric == "dice":
                lines.append(f"<h3>{heading}</h3>\n{content}")
            else:
                lines.append(f"<details><summary>{heading}</summary>{content}</details>")
    return lines


def _numbers_table(points: Sequence[Point]) -> str:
    columns = [
        "labelled",
        "arm",
        "mean",
        "95 % interval",
        "difference",
        "95 % interval",
        "verdict",
        "seeds",
        "patients",
    ]
    rows = []
    for p in points:
        metric = METRICS[p.metric]
        digits = metric.decimals + 1
        difference, between, verdict = "", "", ""
        if p.difference is not None:
            more = max(digits, sentences.decimals_for(p.difference, metric))
            difference = sentences.number(p.difference.mean, more, signed=True)
            between, verdict = _between(p.difference, more), p.verdict()
        name = BASELINES.get(p.measure, p.arm).removeprefix("a ") if p.arm == "scratch" else p.arm
        rows.append(
            (p.n_labelled, name, sentences.number(p.score.mean, digits), _between(p.score, digits), difference, between,
             verdict, p.score.replicates, p.score.patients)
        )  # fmt: skip
    notes = sorted({note for p in points for e in (p.score, p.difference) if e and (note := sentences.loss(e))})
    reasons = sorted({e.reason for p in points for e in (p.score, p.difference) if e and e.reason})
    caption = "; ".join([*notes, *(f"no interval: {reason}" for reason in reasons)])
    return page.table(columns, rows, numbers=(2, 3, 4, 5, 7, 8), caption=caption, tight=(6,), marks=MARKS)


def _between(found: Estimate, digits: int) -> str:
    return "none" if found.low is None else sentences.interval(found, digits)


def tuning(trials: Sequence[Trial]) -> list[str]:
    """The learning-rate search, arm by rate."""
    lines = ["<h2>What was tuned</h2>"]
    if not trials:
        return [*lines, "<p>Nothing: every arm was trained with the settings of the suite.</p>"]
    rates = sorted({t.lr for t in trials})
    rows = []
    for arm in dict.fromkeys(t.arm for t in trials):
        own = {t.lr: t for t in trials if t.arm == arm}
        cells = [f"{own[r].score:.3f}{' *' if own[r].taken else ''}" if r in own else "" for r in rates]
        rows.append((arm, *cells))
    one = trials[0]
    lines.append(
        "<p>The learning rate, for each arm apart and with the same budget, on validation patients only. Test patients "
        "had no part in it.</p>"
    )
    caption = (
        f"Mean foreground Dice of {one.patients} validation patients after fine-tuning on "
        f"{sentences.patients_in_words(one.n_labelled)}, {one.seeds} seed{'' if one.seeds == 1 else 's'}. * taken: the "
        "best of the arm; of equals the smallest."
    )
    names = ["arm", *(f"lr {r:g}" for r in rates)]
    lines.append(page.table(names, rows, numbers=range(1, len(names)), caption=caption))
    if any(t.taken and t.lr in (rates[0], rates[-1]) for t in trials) and len(rates) > 1:
        lines.append(
            '<p class="soft">At least one arm took a rate at the edge of the grid: a wider grid might serve it '
            "better.</p>"
        )
    return lines


def cases(evaluation: Evaluation, points: Sequence[Point]) -> tuple[list[str], list[dict[str, Any]]]:
    """Pictures of test cases from best to worst, and what is said about them as plain data."""
    loaded = [pictures.load_case(path) for path in evaluation.cases]
    shown = [p for p in points if p.metric == "dice"]
    if not loaded or not shown:
        return [], []
    measure = loaded[0].measure or shown[0].measure
    amounts = sorted({p.n_labelled for p in shown if p.measure == measure})
    n = loaded[0].n_labelled or amounts[(len(amounts) - 1) // 2]
    scores = patient_scores(evaluation.results, measure, "dice", n)
    lines, data = [], []
    for case, rank in pictures.choose(loaded, scores.mean(axis=1)):
        arms = _ordered(case.predictions, evaluation)
        values = ", ".join(f"{arm} {case.dice[arm]:.3f}" for arm in arms if arm in case.dice)
        caption = f"Patient {case.patient}, rank {rank} of {len(scores)} test patients" + (
            f"; Dice of these predictions: {values}." if values else "."
        )
        lines.append(page.figure(page.image(pictures.png(pictures.montage(case, arms)), caption), caption))
        data.append({"patient": case.patient, "rank": rank, "of": len(scores), "dice": dict(case.dice)})
    if not lines:
        return [], []
    intro = (
        f"{MEASURES.get(measure, measure)} on {sentences.patients_in_words(n)}, best to worst of the cases kept for "
        "the report, which were named before any score was known. Ranks are by mean Dice over arms and seeds; the "
        "predictions are those of one seed. Axial slice with the largest labelled area, the patient's left on the "
        "right. White lines: the reference under a prediction. Coloured lines:"
    )
    legend = " ".join(
        f'<span class="key"><span style="background:{colour}"></span>{page.text(loaded[0].classes[value])}</span>'
        for value, colour in pictures.class_colours(loaded[0].classes).items()
    )
    return ["<h2>Cases</h2>", f"<p>{page.text(intro)} {legend}</p>", *lines], data


def _ordered(arms: Iterable[str], evaluation: Evaluation) -> list[str]:
    return sorted(arms, key=lambda arm: (evaluation.baselines.get(arm, "scratch") != arm, arm))


def design(evaluation: Evaluation, points: Sequence[Point], trials: Sequence[Trial]) -> list[str]:
    """How the comparison was made."""
    rows = evaluation.results
    test = rows.loc[rows["split"] == "test", "patient"].nunique()
    validation = rows.loc[rows["split"] == "validation", "patient"].nunique()
    items = [
        f"Patients, not scans, were split. {test} test patients are scored once at the end of each training"
        + (f"; learning rates were chosen on {validation} other{'' if validation == 1 else 's'}." if trials else "."),
        "Arms are paired: at each number of labelled patients every arm is trained on the same labelled patients, with "
        "the same seeds, steps and augmentation, and scored on the same test patients.",
    ]
    for measure in dict.fromkeys(p.measure for p in points):
        own = [p for p in points if p.measure == measure]
        amounts = sentences.join([str(n) for n in sorted({p.n_labelled for p in own})])
        seeds = sorted({p.seeds for p in own})
        subsets = sorted({p.subsets for p in own})
        items.append(
            f"{MEASURES.get(measure, measure)}: {amounts} labelled patients; {_range(seeds)} seeds over "
            f"{_range(subsets)} labelled subset{'' if subsets == [1] else 's'}; compared with "
            f"{BASELINES.get(measure, 'its baseline')}."
        )
    items += [
        "A patient's score is the mean over scans and then over classes; both masks empty counts as Dice 1, one empty "
        "as Dice 0 and as a distance of the image's diagonal.",
        "Intervals come from a crossed random-effects model, (labelled subset and seed) x patient: they hold for "
        "other subsets, seeds and patients of the same kind, not only for those drawn here.",
    ]
    return ["<h2>How it was measured</h2>", page.listing(items)]


def limits(evaluation: Evaluation, points: Sequence[Point]) -> list[str]:
    """What the numbers cannot say."""
    groups = by_arm(points)
    fewest = min((p.score.replicates for p in points), default=0)
    items = [
        f"One pre-training run stands behind each arm. The intervals do not hold the variation between such runs, so "
        f"every sentence is about {sentences.CHECKPOINT}, never about the method that made it.",
        f"Only {evaluation.dataset} was measured: other organs, scanners and tasks may differ.",
    ]
    if any(p.subsets == 1 for p in points):
        items.append("Some numbers rest on one labelled subset: they hold for those labelled patients only.")
    if fewest < 10:
        items.append(
            f"The fewest training seeds behind a number are {fewest}, so intervals are wide. Not distinguishable "
            "does not mean equal: every difference inside the interval remains possible."
        )
    if any(len(group) > 1 for group in groups.values()):
        items.append(
            "Each interval holds for its own point. Among many points a few exclude zero by chance; the lines that "
            "begin with 'Judged together' guard against that, for one arm and measure."
        )
    left_out = sorted({note for p in points for e in (p.score, p.difference) if e and (note := sentences.loss(e))})
    items += [
        f"Incomplete results: {note}. If they failed because they were hard, scores are too good." for note in left_out
    ]
    return ["<h2>What this cannot say</h2>", page.listing(items)]


def guard(evaluation: Evaluation) -> list[str]:
    """The result of the leak guard, run by run."""
    items = []
    for name, arm in evaluation.arms.items():
        run = str(arm.get("run") or "")
        if run:
            about = [w for w in evaluation.warnings if run in w]
            items += [f"{name}: {w}" for w in about] or [f"{name}: no test patient was seen in pre-training."]
    if not items:
        return []
    intro = (
        "Before any training, what each run was pre-trained on was compared with the test scans, by content and by "
        "patient."
    )
    return ["<h2>Leak guard</h2>", f"<p>{page.text(intro)}</p>", page.listing(items)]


def provenance(evaluation: Evaluation) -> list[str]:
    """Suite, recipes, environment and how to repeat it, collapsed."""
    lines = ["<h2>Recipe and environment</h2>"]
    runs = [str(arm["run"]) for arm in evaluation.arms.values() if arm.get("run")]
    if runs:
        suite = evaluation.directory / "suite.yaml"
        again = f"ssl3d evaluate {shlex.join(runs)} --suite {shlex.quote(str(suite))} --out NEW"
        lines.append(f"<p>Repeat it: <code>{page.text(again)}</code></p>")
    if evaluation.suite:
        lines.append(page.details("Suite", _yaml(evaluation.suite)))
    for name, arm in evaluation.arms.items():
        about = {key: value for key, value in arm.items() if key != "recipe" and value not in (None, {}, "")}
        lines.append(page.details(f"Arm {name}", _yaml(about)))
        if arm.get("recipe"):
            lines.append(page.details(f"Pre-training recipe of {name}", _yaml(arm["recipe"])))
    if evaluation.environment:
        lines.append(page.details("Environment", json.dumps(evaluation.environment, indent=2)))
    return lines if len(lines) > 1 else []


def _yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
