"""Which test patients a report shows."""

from __future__ import annotations

import numpy as np
import pandas as pd

from downstream.pictures import extremes, worth_a_look

BASELINES = {"scratch": "scratch", "mae": "scratch"}
SCORES = pd.DataFrame(
    {"scratch": [0.9, 0.5, 0.2, 0.6, 0.7, np.nan], "mae": [0.92, 0.8, 0.1, 0.35, 0.7, 0.9]}, index=list("abcdef")
)


def test_the_best_the_worst_and_those_that_changed_most():
    assert extremes(SCORES.loc[list("abcde")], BASELINES) == {
        "a": "best by score",
        "c": "worst by score",
        "b": "largest gain",
        "d": "largest loss",
    }


def test_a_patient_with_two_reasons_is_named_once():
    assert extremes(SCORES.loc[["a", "c"]], BASELINES) == {
        "a": "best by score and largest gain",
        "c": "worst by score and largest loss",
    }


def test_no_loss_where_nothing_was_lost_and_nobody_where_nothing_was_scored():
    assert "largest loss" not in " ".join(extremes(SCORES.loc[["a", "b"]], BASELINES).values())
    assert extremes(SCORES.loc[["a", "b"]], {}) == {"a": "best by score", "b": "worst by score"}
    assert extremes(SCORES[:0], BASELINES) == {} and worth_a_look(SCORES[:0], BASELINES, 3) == []


def test_extremes_first_then_some_in_between_never_more_than_asked_or_there_are():
    assert worth_a_look(SCORES.loc[list("abcde")], BASELINES, 2) == ["a", "c"]
    assert worth_a_look(SCORES.loc[list("abcde")], BASELINES, 5) == ["a", "c", "b", "d", "e"]
    assert worth_a_look(SCORES.loc[list("abcde")], BASELINES, 50) == ["a", "c", "b", "d", "e"]
    many = pd.DataFrame({"scratch": np.linspace(0, 1, 21)}, index=[f"p{i:02d}" for i in range(21)])
    assert worth_a_look(many, {"scratch": "scratch"}, 5) == ["p20", "p00", "p15", "p10", "p05"]
