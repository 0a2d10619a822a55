"""How often tests reject where there is nothing, and intervals of labels saved and of set metrics cover: simulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from downstream.coverage import simulate
from downstream.crossing import BELOW, BEYOND, Crossing, crossing, reach
from downstream.jackknife import values_of
from downstream.permutation import holm, permutation_test
from downstream.statistics import LEVEL, half_widths, p_value
from downstream.volume_metrics import CLASSIFICATION
from ssl3d.seeding import numpy_generator

Array = NDArray[np.float64]


class Rejections(NamedTuple):
    """Shares of simulated studies without a difference in which a test at 5 % finds one."""

    crossed: float
    permutation: float
    crossed_family: float  # any of a family, after Holm
    permutation_family: float


def false_positives(
    studies: int, replicates: int, patients: int, variances: Sequence[float], family: int, seed: int
) -> Rejections:
    """Both tests where the true mean difference is zero; families of independent comparisons of the same design.

    The permutation test's null hypothesis is sharper (no patient effect, no interaction beyond luck): it holds where
    the variance of patients is zero.
    """
    generator = numpy_generator(seed, "false positives", replicates, patients, *(str(v) for v in variances))
    single, families = np.zeros(2), np.zeros(2)
    for _ in range(studies):
        tables = simulate(family, replicates, patients, variances, generator)
        crossed = [p for table in tables if (p := p_value(table)) is not None]
        exact = [permutation_test(table).p for table in tables]
        for i, values in enumerate((crossed, exact)):
            single[i] += values[0] <= 0.05
            families[i] += min(p for p in holm(values) if p is not None) <= 0.05
    return Rejections(*(single / studies), *(families / studies))


KNOTS = (1, 2, 4, 8, 16)
CURVE = (0.60, 0.70, 0.76, 0.80, 0.82)  # scratch's true scores at KNOTS
TRUE_LABELS = {1: 2**0.5, 2: 2.0, 4: 2**2.5}  # labels scratch truly needs for the arm's score at 1, 2, 4
NOISE = (0.02, 0.01, 0.03, 0.02)  # standard deviations: replicate, replicate x amount, patient, residual


def labels_saved(
    studies: int, replicates: int, patients: int, amount: int, seed: int, draws: int = 500
) -> dict[str, float]:
    """Coverage of the labels scratch needs, by ours and by a percentile bootstrap over replicates and patients.

    The same patients and the same labelled subsets in every arm and amount; scratch at KNOTS. The bootstrap is left out
    with `draws` 0. Also the share of studies with an end beyond the range: there ours is open, which covers.
    """
    generator = numpy_generator(seed, "labels saved", replicates, patients, amount)
    truth, x = np.log2(TRUE_LABELS[amount]), np.log2(KNOTS)
    target = float(np.interp(truth, x, CURVE))
    counts = {"ours": 0, "percentile bootstrap": 0, "open": 0}
    for _ in range(studies):
        curves = _scores([*CURVE, target], replicates, patients, generator)
        differences = curves[:-1] - curves[-1]
        low, high = open_ends(crossing(list(x), differences))
        counts["ours"] += low <= truth <= high
        counts["open"] += not np.isfinite(low + high)
        if draws:
            ends = _bootstrap(list(x), differences, draws, generator)
            counts["percentile bootstrap"] += ends[0] <= truth <= ends[1]
    return {name: count / studies for name, count in counts.items() if draws or name != "percentile bootstrap"}


def open_ends(found: Crossing) -> tuple[float, float]:
    """Both ends of a crossing's interval, infinite where they lie beyond the range."""
    assert found.low is not None and found.high is not None
    return (
        -np.inf if found.low.side == BELOW else found.low.x,
        np.inf if found.high.side == BEYOND else found.high.x,
    )


def _scores(means: Sequence[float], replicates: int, patients: int, generator: np.random.Generator) -> Array:
    """(K, S, P): scores around each mean; the arms share patients, and in part the luck of a replicate."""
    shape = (len(means), replicates, patients)
    of_replicate, of_both, of_patient, residual = NOISE
    return (
        np.asarray(means)[:, None, None]
        + of_replicate * generator.standard_normal((1, replicates, 1))
        + of_both * generator.standard_normal((shape[0], replicates, 1))
        + of_patient * generator.standard_normal((1, 1, patients))
        + 0.3 * of_patient * generator.standard_normal((shape[0], 1, patients))
        + residual * generator.standard_normal(shape)
    )


def _bootstrap(x: list[float], differences: Array, draws: int, generator: np.random.Generator) -> tuple[float, float]:
    """Percentiles of the crossing over resampled replicates and patients; outside the range it is infinite."""
    _, s, p = differences.shape
    places = []
    for _ in range(draws):
        rows, columns = generator.integers(0, s, s), generator.integers(0, p, p)
        place = reach(x, differences[:, rows][:, :, columns].mean((1, 2)), 0.0)
        places.append(place.side * np.inf if place.side else place.x)
    ends = np.sort(places)[[int(draws * (1 - LEVEL) / 2), int(np.ceil(draws * (1 + LEVEL) / 2)) - 1]]
    return float(ends[0]), float(ends[1])


SEPARATION = {"0.75": 0.95, "0.90": 1.81, "0.97": 2.66}  # true AUROC: distance of the classes in standard deviations


def set_metric(
    studies: int, replicates: int, patients: int, separation: float, seed: int, metric: str = "auroc"
) -> dict[str, float]:
    """Coverage of a difference of a set's metric between two equally good arms, and of a single arm's.

    Half the patients are of each class. A patient's score has a part that both arms share, one of the arm, one of the
    training with its seed. The truth of a single arm is its mean over the simulated trainings of as many patients.
    """
    generator = numpy_generator(seed, "set metric", metric, replicates, patients, str(separation))
    truth = (np.arange(patients) % 2).astype(np.float64)
    function = CLASSIFICATION[metric]
    tables = np.empty((studies, 2, replicates, patients))
    values = np.empty((studies, 2, replicates))
    for i in range(studies):
        shared = generator.standard_normal((1, 1, patients)) * np.sqrt(0.5)
        own = generator.standard_normal((2, 1, patients)) * np.sqrt(0.25)
        noise = generator.standard_normal((2, replicates, patients)) * np.sqrt(0.25)
        logits = separation * (truth - 0.5) + shared + own + noise
        logits = logits + 0.2 * generator.standard_normal((2, replicates, 1)) * (truth - 0.5)  # a seed's quality
        for arm in range(2):
            for s in range(replicates):
                positive = 1 / (1 + np.exp(-2 * logits[arm, s]))
                prediction = np.stack([1 - positive, positive], 1)
                found = values_of(metric, truth, prediction, np.arange(patients))
                tables[i, arm, s] = [found[str(p)] for p in range(patients)]
                values[i, arm, s] = function(truth, prediction)
    mean, half = half_widths(tables[:, 0] - tables[:, 1])
    single, width = half_widths(tables[:, 0])
    held = np.abs(mean) <= half, np.abs(single - values.mean()) <= width
    return {"difference": float(held[0].mean()), "single": float(held[1].mean())}


def markdown_tests(studies: int, replicates: Sequence[int], patients: Sequence[int], seed: int) -> str:
    """False positives at 5 %, in per cent: single comparisons, and any of a family of four after Holm."""
    head = ["seeds", "patients", "variance seed : patient : residual", "crossed p", "permutation p",
            "crossed, any of 4 after Holm", "permutation, any of 4 after Holm"]  # fmt: skip
    rows = []
    for s in replicates:
        for p in patients:
            for ratio in ((0.3, 0.0, 1.0), (0.3, 1.0, 1.0), (1.0, 1.0, 1.0)):
                found = false_positives(studies, s, p, ratio, 4, seed)
                rows.append([str(s), str(p), " : ".join(f"{v:g}" for v in ratio), *(f"{100 * v:.1f}" for v in found)])
    return markdown_table(head, rows)


def markdown_labels(studies: int, replicates: Sequence[int], patients: Sequence[int], seed: int) -> str:
    """Coverage of the labels that scratch needs for the arm's score at 2 labels (truth: 2), in per cent."""
    rows = []
    for s in replicates:
        for p in patients:
            found = labels_saved(studies, s, p, 2, seed, draws=200)
            rows.append([str(s), str(p), *(f"{100 * found[n]:.1f}" for n in ("percentile bootstrap", "ours", "open"))])
    head = ["seeds", "patients", "percentile bootstrap", "ours", "of ours with an end beyond the range"]
    return markdown_table(head, rows)


def markdown_sets(studies: int, replicates: Sequence[int], patients: Sequence[int], seed: int) -> str:
    """Coverage of metrics of a whole set by pseudo-values, in per cent: AUROC at three levels, the others at one."""
    cases = [("auroc", name) for name in SEPARATION] + [(m, "0.75") for m in CLASSIFICATION if m != "auroc"]
    rows = []
    for s in replicates:
        for p in patients:
            for metric, level in cases:
                found = set_metric(studies, s, p, SEPARATION[level], seed, metric)
                rows.append([metric, level, str(s), str(p), *(f"{100 * v:.1f}" for v in found.values())])
    head = ["metric", "true AUROC", "seeds", "patients", "difference of two arms", "score of one arm"]
    return markdown_table(head, rows)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
