"""Arms against each other: paired like the difference to scratch, run by run, network by network."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from synthetic_evaluation import rows, write_evaluation

from downstream.comparison import compare
from downstream.pairs import pairs
from downstream.report import write_report
from downstream.sections.duels import said


def method(table: pd.DataFrame, arm: str, shifts: list[float]) -> pd.DataFrame:
    """Pre-training runs of one method, made of an arm's rows."""
    own = table[table["arm"] == arm].assign(method=f"{arm.upper()}-0a1b2c")
    parts = [
        own.assign(arm=f"{arm}-{i}", run=f"runs/{arm}-{i}", pretrain_seed=float(i), value=own["value"] + shift)
        for i, shift in enumerate(shifts)
    ]
    return pd.concat([table[table["arm"] == "scratch"], *parts])


def test_the_difference_is_that_of_the_differences_to_scratch():
    table = rows({"a": {2: 0.06, 4: 0.0}, "b": {2: 0.02, 4: 0.0}})
    found = {pair.n_labelled: pair for pair in pairs(table)}
    points = [p for p in compare(table) if p.difference and p.metric == "dice"]
    to_scratch = {(p.arm, p.n_labelled): p.difference.mean for p in points}
    assert [(p.one, p.other) for p in found.values()] == [("a", "b")] * 2
    for n, pair in found.items():
        assert pair.difference.mean == pytest.approx(to_scratch["a", n] - to_scratch["b", n])
    assert found[2].better() == "a" and found[4].better() is None
    assert found[2].family == 2 and found[2].p < found[2].p_holm < 0.05
    assert said(list(found.values())) == ["a is better than b at 2 labelled patients (after Holm over 2 comparisons)."]
    alike = pairs(rows({"a": {4: 0.0}, "b": {4: 0.0}}))
    assert said(alike)[0].startswith("No two arms are distinguishable after Holm over 1 comparison")


def test_of_a_distance_the_lower_is_better():
    (pair,) = pairs(rows({"a": {2: 0.06}, "b": {2: 0.0}}), metric="hd95")
    assert pair.difference.mean < 0 and pair.better() == "a"


def test_runs_of_two_methods_are_a_random_factor():
    table = rows({"a": {2: 0.06}, "b": {2: 0.02}})
    a, b = (method(table, arm, [0.0, 0.02, -0.02]) for arm in "ab")
    (pair,) = pairs(pd.concat([a, b]).drop_duplicates())
    assert (pair.one, pair.other, pair.difference.runs) == ("A", "B", 3)
    uneven = method(table, "a", [0.0, 0.04, -0.04])
    (wider,) = pairs(pd.concat([uneven, b]).drop_duplicates())
    assert wider.difference.half_width > pair.difference.half_width
    assert wider.difference.mean == pytest.approx(pair.difference.mean)


def test_a_checkpoint_against_a_method_is_held_fixed_whichever_comes_first():
    table = rows({"a": {2: 0.06}, "b": {2: 0.02}})
    runs = method(table, "a", [0.0, 0.01, -0.01])
    (later,) = pairs(pd.concat([runs, table[table["arm"] == "b"]]))
    (before,) = pairs(pd.concat([runs, table[table["arm"] == "b"].assign(arm="0", method="0-000000")]))
    assert (later.one, later.other, before.one, before.other) == ("A", "b", "0", "A")
    assert later.difference.runs == before.difference.runs == 3
    assert later.difference.mean == pytest.approx(-before.difference.mean)
    assert later.better() == before.better() == "A"


def test_unequal_numbers_of_runs_are_left_out():
    table = rows({"a": {2: 0.06}, "b": {2: 0.02}})
    both = [method(table, "a", [0.0, 0.01, -0.01]), method(table, "b", [0.0, 0.01, -0.01, 0.02])]
    assert pairs(pd.concat(both).drop_duplicates()) == []


def test_networks_are_not_compared():
    table = rows({"a": {2: 0.06}, "b": {2: 0.02}})
    two = pd.concat([table, table[table["arm"] == "scratch"].assign(arm="scratch-vit")])
    assert pairs(two, {"a": "scratch", "b": "scratch-vit"}) == []


def test_the_report_has_them(tmp_path):
    out = write_evaluation(tmp_path / "out", rows({"a": {2: 0.06}, "b": {2: 0.0}}), pictures=0)
    text = write_report(out).read_text()
    found = json.loads((out / "report.json").read_text())["pairs"]
    assert [(p["one"], p["other"], p["better"]) for p in found] == [("a", "b", "a")]
    assert "Arms against each other" in text and "a is better than b at 2 labelled patients" in text
    alone = write_evaluation(tmp_path / "alone", rows({"a": {2: 0.06}}), pictures=0)
    assert "Arms against each other" not in write_report(alone).read_text()
