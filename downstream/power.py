"""What a design can find, before it runs: the least difference it would show, and the seeds that a difference needs.

Power is that of the interval the report judges by (downstream.statistics, downstream.three_factor): the chance that it
excludes zero. For Gaussian effects the mean squares of a balanced design are independent multiples of chi-square
variables and independent of the mean, so the power is a mean over drawn mean squares, without simulating scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr

from downstream import three_factor
from downstream.comparison import METRICS, compare
from downstream.statistics import FEWEST, FEWEST_RUNS, LEVEL, Components, half_widths_of
from ssl3d.seeding import numpy_generator

POWER = 0.8
DRAWS = 4000  # of mean squares; the error of a power of 0.8 is below 0.007
MOST_SEEDS = 200
Array = NDArray[np.float64]

# Of paired differences to the arm without pre-training, where they were measured: means over arms and amounts of labels
# of the studies in docs/results (5 labelled subsets; 33, 60 and 60 patients), squared Dice or AUROC pseudo-values.
USUAL = {
    "training": {
        "hippocampus": Components(0.0001, 0.00022, 0.00024, 0.000036, 0.00011, 0.000027, 0.00032),
        "phantom": Components(0.0065, 0.001, 0.0051),
    },
    "frozen features": {
        "hippocampus": Components(0.00054, 0.00095, 0.00059, 0.000032, 0.00022, 0.00026, 0.0014),
        "phantom": Components(0.00038, 0.0011, 0.007),
    },
    "classification": {"phantom pathology": Components(0.0004, 0.03, 0.4)},
}


@dataclass(frozen=True)
class Design:
    """A planned comparison: training replicates, test patients, and pre-training runs a method (1: a checkpoint)."""

    replicates: int
    patients: int
    runs: int = 1

    @property
    def reason(self) -> str | None:
        """Why it will give no interval, in words, or None."""
        if self.replicates < FEWEST:
            return f"{self.replicates} training seeds give no interval: take {FEWEST} or more"
        if self.patients < FEWEST:
            return f"{self.patients} test patients give no interval: take {FEWEST} or more"
        return None


def power(difference: float, design: Design, components: Components, level: float = LEVEL) -> float:
    """The chance that the interval excludes zero when the true mean difference is `difference`.

    With fewer than three runs that of the two-factor interval: it is about a checkpoint, whose own effect is in
    `difference`. Raises ValueError for a design that gives no interval.
    """
    half, spread = _drawn(design, components, level)
    return _power(difference, half, spread)


def minimum_detectable(
    design: Design, components: Components, wanted: float = POWER, level: float = LEVEL
) -> float | None:
    """The least true mean difference that is found with the `wanted` power; None for a design without an interval."""
    if design.reason:
        return None
    half, spread = _drawn(design, components, level)
    low, high = 0.0, float(np.max(half)) + 10 * spread
    if high == 0:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, half, spread) < wanted else (low, middle)
    return high


def seeds_needed(
    difference: float,
    patients: int,
    components: Components,
    runs: int = 1,
    wanted: float = POWER,
    level: float = LEVEL,
) -> int | None:
    """The fewest training seeds with which `difference` is found; None when MOST_SEEDS are too few.

    More seeds do not help where patients or runs are what varies: then None says so.
    """

    def enough(seeds: int) -> bool:
        found = minimum_detectable(Design(seeds, patients, runs), components, wanted, level)
        return found is not None and found <= abs(difference)

    if patients < FEWEST or not enough(MOST_SEEDS):
        return None
    low, high = FEWEST - 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def components_of(
    results: pd.DataFrame,
    measure: str,
    metric: str = "dice",
    n_labelled: int | None = None,
    baselines: Mapping[str, str] | None = None,
) -> Components:
    """Mean variance components of the differences to scratch in an earlier evaluation, over arms and amounts of labels.

    `n_labelled`: of this amount alone. `baselines` {arm: its scratch arm}, by default `scratch`. Over the methods with
    three runs or more where there is one, for checkpoints do not tell runs apart. Raises ValueError when no difference
    of the measure has an interval.
    """
    points = compare(results, baselines)
    points = [p for p in points if p.measure == measure and p.metric == metric and p.difference]
    points = [p for p in points if n_labelled is None or p.n_labelled == n_labelled]
    found = [p.difference.components for p in points if p.difference and p.difference.components]
    if not found:
        raise ValueError(
            f"no difference to scratch by '{measure}' in {METRICS[metric].name} has an interval: an earlier evaluation "
            f"with {FEWEST} seeds or more is needed to plan by it"
        )
    return mean_components(found)


def mean_components(found: Sequence[Components]) -> Components:
    """The mean of each component, over those with a factor of runs where there are any: the others' mean other things.

    Without that factor the residual holds the interaction of replicate and patient too.
    """
    alike = [one for one in found if one.run is not None] or found
    names = [field.name for field in fields(Components) if getattr(alike[0], field.name) is not None]
    return Components(**{name: float(np.mean([getattr(one, name) for one in alike])) for name in names})


def of_checkpoint(components: Components) -> Components:
    """Components of one run's differences: how the run meets a replicate or a patient adds to that replicate's luck."""
    c = components
    return Components(
        c.replicate + (c.run_replicate or 0.0),
        c.patient + (c.run_patient or 0.0),
        c.residual + (c.replicate_patient or 0.0),
    )


def sentence(design: Design, components: Components, unit: str = "Dice", wanted: float = POWER) -> str:
    """ "5 seeds, 30 test patients, one run: differences of 0.021 Dice and more are found with 80 % power"."""
    runs = "one pre-training run" if design.runs == 1 else f"{design.runs} pre-training runs a method"
    start = f"{design.replicates} training seeds, {design.patients} test patients, {runs}"
    found = minimum_detectable(design, components, wanted)
    if found is None:
        return f"{start}: {design.reason}"
    about = "the method" if design.runs >= FEWEST_RUNS else "a checkpoint"
    guess = ""
    if design.runs >= FEWEST_RUNS and components.run is None:
        guess = ", if runs do not differ at all: how much they do is not known"
    return f"{start}: a difference of {found:.2g} {unit} of {about} is found with {100 * wanted:.0f} % power{guess}"


def _drawn(design: Design, components: Components, level: float) -> tuple[Array, float]:
    """Half-widths of drawn studies, and the standard deviation of the mean."""
    if design.reason:
        raise ValueError(design.reason)
    generator = numpy_generator(0, "power", design.replicates, design.patients, design.runs)
    s, p = design.replicates, design.patients
    if design.runs < FEWEST_RUNS:
        one = of_checkpoint(components)
        residual = one.residual
        expected = (residual + p * one.replicate, residual + s * one.patient, residual)
        freedom = (s - 1, p - 1, (s - 1) * (p - 1))
        drawn = tuple(e * generator.chisquare(f, DRAWS) / f for e, f in zip(expected, freedom))
        variance = (expected[0] + expected[1] - residual) / (s * p)
        return half_widths_of(drawn, s, p, level), float(np.sqrt(variance))
    sizes = (design.runs, s, p)
    effects = _effects(components)
    degrees = three_factor.degrees(sizes)
    squares, variance = {}, 0.0
    for effect in three_factor.EFFECTS:
        above = [other for other in three_factor.EFFECTS if set(effect) <= set(other)]
        mean_square = sum(effects[other] * _repeats(other, sizes) for other in above)
        squares[effect] = mean_square * generator.chisquare(degrees[effect], DRAWS) / degrees[effect]
        variance += effects[effect] * _repeats(effect, sizes) / float(np.prod(sizes))
    return three_factor.half_widths_of(squares, sizes, level), float(np.sqrt(variance))


def _effects(components: Components) -> dict[three_factor.Effect, float]:
    """Variances by effect; the interaction of replicate and patient lies in the residual where there were no runs."""
    c = components
    between = c.residual if c.replicate_patient is None else c.replicate_patient
    own = 0.0 if c.replicate_patient is None else c.residual
    values = (c.run, c.replicate, c.patient, c.run_replicate, c.run_patient, between, own)
    return {effect: value or 0.0 for effect, value in zip(three_factor.EFFECTS, values)}


def _repeats(effect: three_factor.Effect, sizes: tuple[int, int, int]) -> float:
    return float(np.prod([size for axis, size in enumerate(sizes) if axis not in effect]))


def _power(difference: float, half: Array, spread: float) -> float:
    """Mean over drawn half-widths of P(|mean| > half), the mean Gaussian around `difference`."""
    if spread == 0:
        return float((abs(difference) > half).mean())
    return float((ndtr((difference - half) / spread) + ndtr((-difference - half) / spread)).mean())
