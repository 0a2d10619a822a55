"""What the numbers allow one to say, in words. No sentence claims more than its interval does."""

from __future__ import annotations

import math
from collections.abc import Sequence

from downstream.comparison import BASELINES, MEASURES, METRICS, Metric, Point
from downstream.statistics import FEWEST_RUNS, Estimate

CHECKPOINT = "this checkpoint"  # one pre-training run says nothing about the method that made it
METHOD = "this method"  # three pre-training runs or more, and their variation is in the interval


def subject(point: Point) -> str:
    """ "this checkpoint (mae-0)", or "this method (MAE, 3 pre-training runs)" where it was run three times or more."""
    if not point.of_method:
        return f"{CHECKPOINT} ({point.arm})"
    return f"{METHOD} ({point.arm}, {(point.difference or point.score).runs} pre-training runs)"


def runs_behind(points: Sequence[Point]) -> list[str]:
    """What the numbers of pre-training runs allow and forbid to say, a sentence each kind of arm among the points."""
    judged = [p for p in points if not p.is_baseline]
    single = sorted({p.arm for p in judged if not p.of_method})
    several = sorted({p.arm for p in judged if p.of_method})
    lines = []
    if single:
        lines.append(
            f"Fewer than {FEWEST_RUNS} pre-training runs stand behind {join(single)}. The intervals do not hold the "
            f"variation between such runs, so every sentence there is about {CHECKPOINT}, never about the method that "
            "made it."
        )
    if several:
        lines.append(
            f"Several pre-training runs stand behind {join(several)}; their variation is in the intervals. The runs "
            "differ in their seed alone: other data, longer training or another network would be another method."
        )
    return lines


def decimals_for(found: Estimate, metric: Metric) -> int:
    """Digits that an estimate deserves: more for a narrow interval, and enough that no bound's sign is rounded away."""
    half, digits = found.half_width, metric.decimals
    if half is None:
        return digits
    digits += half < 2 * 10.0**-digits
    most = metric.decimals + (3 if found.sign() else 1)  # a verdict must show in its numbers, however close the call
    bounds = [bound for bound in (found.low, found.high) if bound]
    while digits < most and any(abs(bound) < 0.5 * 10.0**-digits for bound in bounds):
        digits += 1
    return digits


def number(value: float, digits: int, signed: bool = False) -> str:
    """A fixed-point number; never "-0.00"."""
    rounded = round(value, digits) + 0.0
    text = f"{rounded:+.{digits}f}" if signed else f"{rounded:.{digits}f}"
    return text if rounded != 0 or not signed else f"{0:.{digits}f}"


def interval(found: Estimate, digits: int) -> str:
    """ "-0.01 to 0.07", or why there is none."""
    if found.low is None or found.high is None:
        return f"no interval ({found.reason})"
    return f"{number(found.low, digits)} to {number(found.high, digits)}"


def baseline_in_words(point: Point) -> str:
    """ "scratch", or "a random encoder" for a probe."""
    return point.without or BASELINES.get(point.measure, point.baseline)


def measure_in_words(point: Point) -> str:
    """ "Linear probe", as the evaluation calls it."""
    return point.title or MEASURES.get(point.measure, point.measure)


def patients_in_words(n: int) -> str:
    return f"{n} labelled patient{'' if n == 1 else 's'}"


def level_in_words(found: Estimate) -> str:
    return f"{100 * found.level:.4g} % interval"


def verdict_in_words(point: Point) -> str:
    """ "better than scratch", "worse than scratch", "not distinguishable from scratch", or that nothing can be said."""
    verdict, other = point.verdict(), baseline_in_words(point)
    if verdict == "no interval":
        return f"whether it differs from {other} cannot be said"
    return f"not distinguishable from {other}" if verdict == "not distinguishable" else f"{verdict} than {other}"


def sentence(point: Point) -> str:
    """ "at 4 labelled patients: +0.03 Dice, 95 % interval -0.01 to 0.07: not distinguishable from scratch".

    Raises ValueError for a point without a baseline.
    """
    found, metric = point.difference, METRICS[point.metric]
    if found is None:
        raise ValueError(f"the arm '{point.arm}' has no baseline at {patients_in_words(point.n_labelled)}")
    start = f"at {patients_in_words(point.n_labelled)}: "
    if math.isnan(found.mean):
        return f"{start}no difference can be given ({found.reason})"
    digits = decimals_for(found, metric)
    start += f"{number(found.mean, digits, signed=True)} {metric.unit}, "
    if found.low is None:
        return f"{start}no interval ({found.reason}): {verdict_in_words(point)}"
    return f"{start}{level_in_words(found)} {interval(found, digits)}: {verdict_in_words(point)}"


def loss(found: Estimate) -> str | None:
    """What was left out for missing cells, or None."""
    parts = []
    if found.dropped_runs:
        parts.append(f"{found.dropped_runs} pre-training run{'' if found.dropped_runs == 1 else 's'}")
    if found.dropped_replicates:
        parts.append(f"{found.dropped_replicates} training seed{'' if found.dropped_replicates == 1 else 's'}")
    if found.dropped_patients:
        parts.append(f"{found.dropped_patients} test patient{'' if found.dropped_patients == 1 else 's'}")
    return f"{join(parts)} left out, because cells are missing" if parts else None


def summary(points: Sequence[Point]) -> str:
    """One arm and measure over all its numbers of labelled patients: the main conclusion, nulls said as plainly."""
    if not points:
        raise ValueError("there is no comparison to summarise")
    first, other = points[0], baseline_in_words(points[0])
    measure = measure_in_words(first)
    words = {
        "better": f"better than {other}",
        "worse": f"worse than {other}",
        "not distinguishable": f"not distinguishable from {other}",
    }
    found = {verdict: [p.n_labelled for p in points if p.verdict() == verdict] for verdict in words}
    parts = [f"{words[verdict]} {at_labelled(amounts)}" for verdict, amounts in found.items() if amounts]
    unknown = [p for p in points if p.verdict() == "no interval"]
    if not parts:
        reason = unknown[0].difference.reason if unknown[0].difference else "no baseline"
        return f"{measure}: whether {subject(first)} differs from {other} cannot be said ({reason})."
    text = f"{measure}: {subject(first)} is {join(parts)}."
    return text + (f" Nothing can be said {at_labelled([p.n_labelled for p in unknown])}." if unknown else "")


def joint_statement(points: Sequence[Point]) -> str | None:
    """What still holds when all points of an arm are judged together (Bonferroni); None for a single point."""
    judged = [p for p in points if p.joint is not None and p.joint.low is not None]
    if len(judged) < 2:
        return None
    other = baseline_in_words(points[0])
    found = {word: [p.n_labelled for p in judged if p.verdict(joint=True) == word] for word in ("better", "worse")}
    parts = [f"{word} than {other} {at_labelled(amounts)}" for word, amounts in found.items() if amounts]
    remains = (
        f"{METHOD if points[0].of_method else CHECKPOINT} remains {join(parts)}"
        if parts
        else f"no difference from {other} remains"
    )
    return f"Judged together ({len(judged)} comparisons, Bonferroni), {remains}."


def conclusion(points: Sequence[Point]) -> str:
    """The summary, followed by the joint statement where that takes something back."""
    joint = joint_statement(points)
    lost = any(p.verdict(joint=True) != p.verdict() for p in points)
    return f"{summary(points)} {joint}" if joint and lost else summary(points)


def guessing(points: Sequence[Point]) -> str | None:
    """Where no arm of a measure, scratch included, is distinguishable from guessing; None where the metric has no such.

    There a comparison is no news of a method: none of them has learnt the target.
    """
    first, level = points[0], METRICS[points[0].metric].guessing
    if level is None:
        return None

    def guessed(n: int) -> bool:
        scores = [p.score for p in points if p.n_labelled == n]
        return all(s.low is not None and s.high is not None and s.low <= level <= s.high for s in scores)

    amounts = [n for n in dict.fromkeys(p.n_labelled for p in points) if guessed(n)]
    return (
        f"{measure_in_words(first)}: {at_labelled(amounts)} no arm, pre-trained or not, is distinguishable from "
        f"guessing ({METRICS[first.metric].name} {level:g}), so nothing can be said there about which learns more."
        if amounts
        else None
    )


def join(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def at_labelled(amounts: Sequence[int]) -> str:
    """ "at 1 labelled patient", "at 4, 8 and 16 labelled patients"."""
    return f"at {join([str(n) for n in amounts])} labelled patient{'' if list(amounts) == [1] else 's'}"


def p_in_words(p: float) -> str:
    """ "p = 0.034", "p < 0.001"; rounded up, so that no p looks smaller than it is."""
    if p < 0.001:
        return "p < 0.001"
    digits = 3 if p < 0.1 else 2
    return f"p = {min(math.ceil(p * 10**digits - 1e-9) / 10**digits, 1.0):.{digits}f}"


def p_cell(p: float | None) -> str:
    """A p-value in a column of them: "0.034", "< 0.001", "none"."""
    return "none" if p is None else p_in_words(p).removeprefix("p ").removeprefix("= ")


def sentence_of_tests(point: Point) -> str | None:
    """What both tests of a point say: their hypotheses, the exchangeable unit, the least p possible, Holm's family."""
    tests = point.tests
    if tests is None:
        return None
    family = f"after Holm over {tests.family} comparisons"
    parts = []
    if tests.p is not None:
        corrected = f" ({p_in_words(tests.p_holm)} {family})" if tests.p_holm is not None and tests.family > 1 else ""
        parts.append(f"that the mean difference is zero: {p_in_words(tests.p)}{corrected}")
    exact = tests.permutation
    if exact is not None:
        corrected = ""
        if tests.permutation_holm is not None and tests.family > 1:
            corrected = f" ({p_in_words(tests.permutation_holm)} {family})"
        least = "the smallest possible" if exact.p <= exact.smallest else f"{p_in_words(exact.smallest)} at the least"
        parts.append(
            f"that on these test patients the start makes no difference: {p_in_words(exact.p)}, {least} when arms are "
            f"exchanged within each of {exact.replicates} replicates (labelled subset and seed){corrected}"
        )
    return f"at {patients_in_words(point.n_labelled)}, tested {'; '.join(parts)}" if parts else None
