"""Labels saved and learning speed, from rows of results: by hand, beyond the range, with runs."""

import pandas as pd
import pytest
from synthetic_evaluation import BASE, rows

from downstream.crossing import BELOW, BEYOND, INSIDE
from downstream.efficiency import labels_saved, learning_speed
from downstream.tables import joined_subsets


def _one(found, arm, n):
    (own,) = [place for place in found if (place.arm, place.n_labelled) == (arm, n)]
    return own


@pytest.fixture(scope="module")
def table():
    """The arm at 1 label is as good as scratch halfway (in log2) between 1 and 2; at 2 labels as good as at 4."""
    halfway = (BASE[2] - BASE[1]) / 2
    return rows({"mae": {1: halfway, 2: BASE[4] - BASE[2], 4: 0.2}}, noise=0.004, seeds=range(4), patients=6)


def test_labels_saved(table):
    found = labels_saved(table)
    assert [(place.arm, place.n_labelled) for place in found] == [("mae", 1), ("mae", 2), ("mae", 4)]
    half = _one(found, "mae", 1)
    assert half.factor(half.estimate) == pytest.approx(2**0.5, rel=0.05)
    assert half.low.side == half.high.side == INSIDE and half.low.x < 2**0.5 < half.high.x
    assert (half.first, half.last, half.replicates, half.patients, half.reason) == (1, 4, 4, 6, None)
    edge = _one(found, "mae", 2)
    assert edge.high.side == BEYOND and edge.low.x < 4 and edge.factor(edge.low) < 2
    far = _one(found, "mae", 4)
    assert (far.estimate.side, far.low.side, far.high.side) == (BEYOND, BEYOND, BEYOND)


def test_a_distance_says_the_same(table):
    dice, distance = (_one(labels_saved(table, metric=metric), "mae", 1) for metric in ("dice", "hd95"))
    assert distance.estimate.x == pytest.approx(dice.estimate.x)
    assert (distance.low.x, distance.high.x) == pytest.approx((dice.low.x, dice.high.x))


def test_worse_than_all_is_below():
    found = _one(labels_saved(rows({"mae": {1: -0.2, 2: 0.0, 4: 0.0}}, noise=0.004)), "mae", 1)
    assert (found.estimate.side, found.low.side, found.high.side) == (BELOW, BELOW, BELOW)


def test_one_amount_of_labels_has_no_curve():
    assert labels_saved(rows({"mae": {2: 0.1}}).query("n_labelled == 2")) == []


def test_too_few_seeds_have_an_estimate_alone(table):
    found = _one(labels_saved(table[table["seed"] < 2]), "mae", 1)
    assert found.low is None and found.high is None and found.reason == "only 2 training seeds"
    assert found.estimate.side == INSIDE


def test_three_runs_are_a_method(table):
    scratch, own = table[table["arm"] == "scratch"], table[table["arm"] == "mae"]
    shifts = (-0.02, 0.0, 0.02)
    own = own.assign(method="MAE-0a1b2c")
    parts = [
        own.assign(arm=f"mae-{i}", run=f"runs/{i}", pretrain_seed=i, value=own["value"] + shift)
        for i, shift in enumerate(shifts)
    ]
    found = _one(labels_saved(pd.concat([scratch, *parts])), "MAE", 1)
    alone = _one(labels_saved(table), "mae", 1)
    assert found.runs == 3 and found.of_method and not alone.of_method
    assert found.estimate.x == pytest.approx(alone.estimate.x)
    assert alone.low.side == alone.high.side == INSIDE
    assert found.low.side == BELOW or found.high.x / found.low.x > alone.high.x / alone.low.x


def test_seeds_of_one_subset_are_one_replicate_at_every_amount(table):
    """Of four seeds two drew the same patient at 1: three replicates, none of what was measured left out."""
    same = table.assign(subset=table["subset"].where(table["n_labelled"] > 1, table["subset"].replace({2: 0})))
    joined = joined_subsets(same)
    assert joined.groupby("n_labelled")["subset"].nunique().eq(3).all()
    assert set(joined.loc[joined["seed"] == 2, "subset"]) == {0}
    found = _one(labels_saved(same), "mae", 1)
    assert found.replicates == 3 and found.patients == _one(labels_saved(table), "mae", 1).patients
    whole = table.assign(subset=table["subset"].where(table["n_labelled"] < 4, 0))
    assert _one(labels_saved(whole), "mae", 1).replicates == 4  # the whole pool: seeds are the replicates there


def _curves(arms, steps=(50, 100, 200)):
    """Rows of several steps: a training that has learnt `share` of its final score at each."""
    base = rows({arm: {2: 0.0} for arm in arms if arm != "scratch"}, noise=0.004).query("n_labelled == 2")
    parts = []
    for arm, shares in arms.items():
        own = base[base["arm"] == arm]
        parts += [own.assign(step=step, value=own["value"] * share) for step, share in zip(steps, shares)]
    return pd.concat(parts)


def test_learning_speed():
    found = learning_speed(_curves({"scratch": (0.5, 0.9, 1.0), "mae": (0.9, 1.0, 1.0), "quick": (0.97, 1.0, 1.0)}))
    assert _one(found, "scratch", 2).estimate.x == pytest.approx(150, rel=0.02)
    mae = _one(found, "mae", 2)
    assert mae.estimate.x == pytest.approx(75, rel=0.05)
    assert mae.low.x < mae.estimate.x < mae.high.x
    assert _one(found, "quick", 2).estimate.side == BELOW
    slow = _one(learning_speed(_curves({"scratch": (0.5, 0.9, 1.0), "mae": (0.5, 0.6, 0.7)})), "mae", 2)
    assert (slow.estimate.side, slow.low.side, slow.high.side) == (BEYOND, BEYOND, BEYOND)


def test_the_widest_gap_between_scored_steps_is_kept():
    found = learning_speed(_curves({"scratch": (0.5, 0.9, 1.0), "mae": (0.9, 1.0, 1.0)}, (50, 75, 200)))
    assert {r.widest for r in found} == {125.0}


def test_learning_speed_needs_steps_and_a_score():
    assert learning_speed(rows({"mae": {2: 0.1}})) == []
    with pytest.raises(ValueError, match="needs a score"):
        learning_speed(rows({"mae": {2: 0.1}}), metric="hd95")
