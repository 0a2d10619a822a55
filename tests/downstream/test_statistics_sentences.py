"""What is said, word for word."""

from dataclasses import replace

import pytest

from downstream import comparison
from downstream.comparison import Point
from downstream.permutation import Permutation
from downstream.sentences import (
    conclusion,
    guessing,
    joint_statement,
    number,
    p_in_words,
    runs_behind,
    sentence,
    sentence_of_tests,
    subject,
    summary,
)
from downstream.statistics import Estimate


def _estimate(mean, low, high, level=0.95, reason=None):
    return Estimate(mean, low, high, level, 5, 12, reason=reason)


def _point(n, mean, low, high, measure="finetune", metric="dice", reason=None, joint=None):
    difference = _estimate(mean, low, high, reason=reason)
    return Point(measure, metric, "mae", "scratch", n, _estimate(0.8, 0.7, 0.9), 5, 5, difference, joint or difference)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        (
            _point(4, 0.0312, -0.0104, 0.0728),
            "at 4 labelled patients: +0.03 Dice, 95 % interval -0.01 to 0.07: not distinguishable from scratch",
        ),
        (
            _point(1, 0.0493, 0.0372, 0.0614),
            "at 1 labelled patient: +0.049 Dice, 95 % interval 0.037 to 0.061: better than scratch",
        ),
        (
            _point(16, -0.0493, -0.08, -0.0186),
            "at 16 labelled patients: -0.05 Dice, 95 % interval -0.08 to -0.02: worse than scratch",
        ),
        (
            _point(2, 0.199, 0.1, 0.298, "probe"),
            "at 2 labelled patients: +0.20 Dice, 95 % interval 0.10 to 0.30: better than a random encoder",
        ),
        (
            _point(2, 0.03, 0.002, 0.058),
            "at 2 labelled patients: +0.030 Dice, 95 % interval 0.002 to 0.058: better than scratch",
        ),
        (
            _point(1, 0.046, -0.004, 0.096),
            "at 1 labelled patient: +0.046 Dice, 95 % interval -0.004 to 0.096: not distinguishable from scratch",
        ),
        (
            _point(1, 0.05, 0.0002, 0.0998),
            "at 1 labelled patient: +0.0500 Dice, 95 % interval 0.0002 to 0.0998: better than scratch",
        ),
        (
            _point(2, -1.234, -2.0, -0.468, metric="hd95"),
            "at 2 labelled patients: -1.2 mm HD95, 95 % interval -2.0 to -0.5: better than scratch",
        ),
        (
            _point(2, 0.03, None, None, reason="only one training seed"),
            "at 2 labelled patients: +0.03 Dice, no interval (only one training seed): whether it differs from scratch "
            "cannot be said",
        ),
        (
            _point(2, 0.0, 0.0, 0.0),
            "at 2 labelled patients: 0.000 Dice, 95 % interval 0.000 to 0.000: not distinguishable from scratch",
        ),
    ],
)
def test_sentence(point, expected):
    assert sentence(point) == expected


def test_summary_says_checkpoint_and_every_verdict():
    points = [_point(1, 0.05, 0.03, 0.07), _point(2, 0.01, -0.03, 0.05), _point(4, 0.0, -0.03, 0.03)]
    assert summary(points) == (
        "Fine-tuning: this checkpoint (mae) is better than scratch at 1 labelled patient and not distinguishable from "
        "scratch at 2 and 4 labelled patients."
    )
    assert "method" not in summary(points)


def test_summary_of_a_null_result_is_as_plain():
    points = [_point(n, 0.0, -0.03, 0.03, "probe") for n in (1, 2, 4)]
    assert summary(points) == (
        "Linear probe: this checkpoint (mae) is not distinguishable from a random encoder at 1, 2 and 4 labelled "
        "patients."
    )


def test_summary_without_intervals():
    unknown = _point(4, 0.1, None, None, reason="only one training seed")
    assert summary([unknown]) == (
        "Fine-tuning: whether this checkpoint (mae) differs from scratch cannot be said (only one training seed)."
    )
    assert summary([_point(1, 0.05, 0.03, 0.07), unknown]).endswith("Nothing can be said at 4 labelled patients.")


def test_where_nothing_was_learnt_it_is_said():
    def point(n, low, high, arm="mae", metric="auroc"):
        score = _estimate(0.55, low, high, reason=None if low else "at the end of the scale")
        return Point("finetune", metric, arm, "scratch", n, score, 5, 5)

    two = [point(4, 0.45, 0.65), point(4, 0.42, 0.6, "scratch"), point(16, 0.51, 0.7), point(16, 0.4, 0.6, "scratch")]
    assert guessing(two) == (
        "Fine-tuning: at 4 labelled patients no arm, pre-trained or not, is distinguishable from guessing (AUROC 0.5), "
        "so nothing can be said there about which learns more."
    )
    assert guessing(two[2:]) is None and guessing([point(4, None, None)]) is None
    assert guessing([point(4, 0.45, 0.65, metric="dice")]) is None, "what guessing has depends on the data"
    assert "rank correlation 0)" in guessing([point(4, -0.2, 0.3, metric="spearman")])


def test_joint_statement():
    wide = _estimate(0.05, -0.01, 0.11, 0.975)
    lost = [_point(1, 0.05, 0.01, 0.09, joint=wide), _point(2, 0.0, -0.1, 0.1)]
    assert joint_statement(lost) == ("Judged together (2 comparisons, Bonferroni), no difference from scratch remains.")
    kept = [_point(1, 0.05, 0.01, 0.09), _point(2, -0.2, -0.3, -0.1)]
    assert joint_statement(kept) == (
        "Judged together (2 comparisons, Bonferroni), this checkpoint remains better than scratch at 1 labelled "
        "patient and worse than scratch at 2 labelled patients."
    )
    assert joint_statement(kept[:1]) is None
    assert conclusion(lost) == f"{summary(lost)} {joint_statement(lost)}"
    assert conclusion(kept) == summary(kept)


@pytest.mark.parametrize(("value", "signed", "expected"), [(-0.0001, False, "0.00"), (-0.0001, True, "0.00"),
                                                           (0.125, True, "+0.12"), (-1.5, True, "-1.50")])  # fmt: skip
def test_number(value, signed, expected):
    assert number(value, 2, signed) == expected


def _tested(runs=None, **tests):
    point = _point(4, 0.0312, -0.0104, 0.0728)
    return replace(point, difference=replace(point.difference, runs=runs), tests=comparison.Tests(**tests))


def test_the_subject_is_a_method_from_three_runs_on():
    assert subject(_tested(None, p=None, permutation=None)) == "this checkpoint (mae)"
    assert subject(_tested(2, p=None, permutation=None)) == "this checkpoint (mae)"
    assert subject(_tested(3, p=None, permutation=None)) == "this method (mae, 3 pre-training runs)"
    assert summary([_tested(3, p=None, permutation=None)]).startswith("Fine-tuning: this method (mae, 3 pre-training")
    several = runs_behind([_tested(3, p=None, permutation=None)])
    assert len(several) == 1 and "their variation is in the intervals" in several[0]
    assert "never about the method" in runs_behind([_point(1, 0.0, -0.1, 0.1)])[0]


def test_tests_in_words():
    exact = Permutation(0.0625, 0.0625, 32, True, 5)
    point = _tested(p=0.0312, permutation=exact, p_holm=0.0936, permutation_holm=0.1875, family=3)
    assert sentence_of_tests(point) == (
        "at 4 labelled patients, tested that the mean difference is zero: p = 0.032 (p = 0.094 after Holm over 3 "
        "comparisons); that on these test patients the start makes no difference: p = 0.063, the smallest possible "
        "when arms are exchanged within each of 5 replicates (labelled subset and seed) (p = 0.19 after Holm over 3 "
        "comparisons)"
    )
    assert "p = 0.063 at the least" in sentence_of_tests(_tested(p=0.5, permutation=replace(exact, p=0.5)))
    assert sentence_of_tests(_point(1, 0.0, -0.1, 0.1)) is None


@pytest.mark.parametrize(("p", "words"), [(0.0005, "p < 0.001"), (0.0491, "p = 0.050"), (0.04, "p = 0.040"),
                                          (0.5001, "p = 0.51"), (1.0, "p = 1.00")])  # fmt: skip
def test_p_is_rounded_up(p, words):
    assert p_in_words(p) == words
