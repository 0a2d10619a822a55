"""How the comparison was made, what it cannot say, and whether test patients were seen before."""

from __future__ import annotations

from downstream import page, sentences
from downstream.blocks import Section
from downstream.sections.view import View, spell
from downstream.statistics import FEWEST
from downstream.volume_metrics import SET_METRICS

LARGE_PART = 0.2  # of a pool, from which on overlapping subsets make an interval too short for other pools


def design(view: View) -> Section:
    """Patients, pairing, seeds, aggregation, intervals."""
    rows = view.evaluation.results
    test = rows.loc[rows["split"] == "test", "patient"].nunique()
    validation = _searched_on(view)
    items = [
        f"Patients, not scans, were split. {test} test patients are scored once at the end of each training"
        + (f"; settings were chosen on {validation} other{'' if validation == 1 else 's'}." if view.trials else "."),
        "Arms are paired: at each number of labelled patients every arm is trained on the same labelled patients, with "
        "the same seeds, steps and augmentation, and scored on the same test patients.",
    ]
    for measure in view.measures:
        own = [p for p in view.points if p.measure == measure]
        amounts = sentences.join([str(n) for n in sorted({p.n_labelled for p in own})])
        subsets = sorted({p.subsets for p in own})
        items.append(
            f"{view.title(measure)}: {amounts} labelled patients; {spell(sorted({p.seeds for p in own}))} seeds over "
            f"{spell(subsets)} labelled subset{'' if subsets == [1] else 's'}; compared with {view.baseline(measure)}."
        )
    metrics = {p.metric for p in view.points}
    if metrics & {"dice", "nsd", "hd95", "assd"}:
        items.append(
            "A patient's score is the mean over scans and then over classes; both masks empty counts as Dice 1, one "
            "empty as Dice 0 and as a distance of the image's diagonal."
        )
    if metrics & set(SET_METRICS):
        items.append(
            "A number of the whole test set (AUROC and the like) enters as its jackknife pseudo-values over patients."
        )
    factors = "(labelled subset and seed) x patient" + (" x pre-training run" if view.members else "")
    items.append(
        f"Intervals come from a crossed random-effects model, {factors}: they hold for other "
        f"{'runs, ' if view.members else ''}seeds and patients of the same kind and other subsets of the same pool"
        f"{_of_pool(view)}, not only those drawn here."
    )
    averaged = sorted({p.n_labelled for p in view.points if 1 < p.subsets < p.seeds})
    if averaged:
        items.append(
            f"{sentences.at_labelled(averaged).capitalize()} some seeds drew the same labelled patients: their scores "
            "are averaged, for they are one labelled subset."
        )
    return Section("How it was measured", [page.listing(items)])


def _of_pool(view: View) -> str:
    pool = len(view.evaluation.pool)
    return f" ({pool} patients)" if pool else ""


def limits(view: View) -> Section:
    """What the numbers cannot say."""
    groups = view.groups()
    fewest = min((p.score.replicates for p in view.points), default=0)
    items = [
        *sentences.runs_behind([p for group in groups.values() for p in group]),
        f"Only {view.evaluation.dataset} was measured: other organs, scanners and tasks may differ.",
    ]
    if any(p.subsets == 1 for p in view.points):
        items.append("Some numbers rest on one labelled subset: they hold for those labelled patients only.")
    items += _overlap(view) + _search(view)
    if fewest < FEWEST:
        items.append(f"Numbers with fewer than {FEWEST} training seeds behind them have no interval.")
    elif fewest < 10:
        items.append(
            f"The fewest training seeds behind a number are {fewest}, so intervals are wide. Not distinguishable "
            "does not mean equal: every difference inside the interval remains possible."
        )
    if any(len(group) > 1 for group in groups.values()):
        items.append(
            "Each interval holds for its own point. Among many points a few exclude zero by chance; the lines that "
            "begin with 'Judged together' guard against that, for one arm and measure."
        )
    left_out = {note for p in view.points for e in (p.score, p.difference) if e and (note := sentences.loss(e))}
    items += [
        f"Incomplete results: {note}. If they failed because they were hard, scores are too good."
        for note in sorted(left_out)
    ]
    return Section("What this cannot say", [page.listing(items)], {"limits": items})


def _overlap(view: View) -> list[str]:
    """Subsets that are a large part of their pool share patients."""
    pool = len(view.evaluation.pool)
    amounts = sorted({p.n_labelled for p in view.points if p.subsets > 1 and p.n_labelled > LARGE_PART * pool})
    if not pool or not amounts:
        return []
    return [
        f"{sentences.at_labelled(amounts).capitalize()} a subset is more than a fifth of the pool of {pool}, so that "
        "subsets overlap: intervals hold for subsets of this pool and would be wider for another pool."
    ]


def _search(view: View) -> list[str]:
    """A search is in no interval, and in no p-value."""
    if not view.trials:
        return []
    patients = _searched_on(view)
    seeds = min(t.seeds for t in view.trials)
    return [
        f"Settings were chosen for each arm on {patients} further labelled patient{'' if patients == 1 else 's'}, "
        f"counted in no number of labelled patients here, with {seeds} seed{'' if seeds == 1 else 's'} a choice. How "
        "lucky an arm's choice was is in no interval and no p-value: both hold given the settings."
    ]


def _searched_on(view: View) -> int:
    """Validation patients."""
    rows = view.evaluation.results
    return int(rows.loc[rows["split"] == "validation", "patient"].nunique())


def guard(view: View) -> Section | None:
    """The result of the leak guard, run by run."""
    evaluation = view.evaluation
    items = []
    for name, arm in evaluation.arms.items():
        run = str(arm.get("run") or "")
        if run:
            about = [w for w in evaluation.warnings if run in w]
            items += [f"{name}: {w}" for w in about] or [f"{name}: no test patient was seen in pre-training."]
    if not items:
        return None
    intro = (
        "Before any training, what each run was pre-trained on was compared with the test scans, by content and by "
        "patient."
    )
    return Section("Leak guard", [page.paragraph(intro), page.listing(items)])
