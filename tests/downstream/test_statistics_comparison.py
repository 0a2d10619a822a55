"""Aggregation and pairing: cases -> patient -> classes -> set, class by class, and what is left out."""

import numpy as np
import pandas as pd
import pytest
from synthetic_evaluation import rows, search_rows
from test_jackknife import auroc

from downstream.comparison import compare, patient_scores, search
from downstream.results import COLUMNS, MEAN_FOREGROUND, read_results
from downstream.volume_metrics import CLASSIFICATION
from ssl3d.seeding import numpy_generator


def _point(points, arm, n, metric="dice"):
    return next(p for p in points if (p.arm, p.n_labelled, p.metric) == (arm, n, metric))


def test_by_hand():
    """Two seeds, two patients; patient a has two cases; two classes."""
    values = {
        ("scratch", 0): {"a1": (0.2, 0.4), "a2": (0.4, 0.6), "b1": (0.5, 0.7)},
        ("scratch", 1): {"a1": (0.2, 0.4), "a2": (0.4, 0.6), "b1": (0.5, 0.7)},
        ("mae", 0): {"a1": (0.3, 0.5), "a2": (0.5, 0.7), "b1": (0.7, 0.9)},
        ("mae", 1): {"a1": (0.3, 0.5), "a2": (0.5, 0.7), "b1": (0.7, 0.9)},
    }
    about = dict.fromkeys(COLUMNS, "")
    lines = []
    for (arm, seed), cases in values.items():
        for case, pair in cases.items():
            for label, value in zip(("x", "y", MEAN_FOREGROUND), (*pair, 99.0)):  # the mean row must not be used
                lines.append({"arm": arm, "schedule": "finetune", "n_labelled": 2, "subset": seed, "seed": seed,
                              "step": 10, "split": "test", "patient": case[0], "case": case, "label": label,
                              "metric": "dice", "value": value})  # fmt: skip
    table = pd.DataFrame([about | line for line in lines], columns=list(COLUMNS))
    points = compare(table)
    mae = _point(points, "mae", 2)
    assert mae.difference is not None
    assert mae.score.mean == pytest.approx((0.5 + 0.8) / 2)
    assert mae.difference.mean == pytest.approx((0.1 + 0.2) / 2)  # patients count equally, not cases
    assert (mae.difference.replicates, mae.difference.patients, mae.subsets) == (2, 2, 2)
    assert mae.verdict() == "no interval"
    assert patient_scores(table, "finetune", "dice", 2)["mae"].to_dict() == (pytest.approx({"a": 0.5, "b": 0.8}))


def test_effects_are_found_and_directions_kept():
    points = compare(rows({"mae": {1: 0.05, 2: 0.0, 4: -0.05}}))
    assert [_point(points, "mae", n).verdict() for n in (1, 4)] == ["better", "worse"]
    distance = _point(points, "mae", 1, "hd95")
    assert distance.difference is not None and distance.difference.mean < 0 and distance.verdict() == "better"
    assert _point(points, "scratch", 1).difference is None
    keys = [(p.measure, p.metric, p.n_labelled, p.arm) for p in points][:4]
    assert keys == [("finetune", "dice", 1, "scratch"), ("finetune", "dice", 1, "mae"),
                    ("finetune", "dice", 2, "scratch"), ("finetune", "dice", 2, "mae")]  # fmt: skip


def test_pairing_removes_what_the_arms_share():
    point = _point(compare(rows({"mae": {2: 0.03}})), "mae", 2)
    assert point.difference is not None
    assert point.difference.half_width < 0.6 * point.score.half_width
    assert point.joint == point.difference  # one comparison: nothing to correct


def test_joint_interval_is_bonferroni():
    point = _point(compare(rows({"mae": {1: 0.0, 2: 0.0, 4: 0.0}})), "mae", 2)
    assert point.joint is not None and point.joint.level == pytest.approx(1 - 0.05 / 3)
    assert point.joint.half_width > point.difference.half_width


def test_order_of_rows_changes_nothing():
    table = rows({"mae": {1: 0.05, 2: 0.0, 4: -0.05}})
    shuffled = table.sample(frac=1, random_state=0).reset_index(drop=True)
    for one, two in zip(compare(table), compare(shuffled)):
        assert (one.arm, one.n_labelled, one.metric) == (two.arm, two.n_labelled, two.metric)
        assert one.score.mean == pytest.approx(two.score.mean, abs=1e-12)
        assert one.score.low == pytest.approx(two.score.low, abs=1e-9)


def test_a_missing_value_leaves_out_the_patient_not_the_class():
    table = rows({"mae": {2: 0.03}})
    hole = (table["arm"] == "mae") & (table["patient"] == "p03") & (table["label"] == "head") & (table["seed"] == 1)
    table.loc[hole & (table["metric"] == "dice"), "value"] = np.nan
    point = _point(compare(table), "mae", 2)
    assert point.difference is not None
    assert (point.difference.patients, point.difference.dropped_patients, point.difference.dropped_replicates) == (
        11,
        1,
        0,
    )


def test_an_unfinished_seed_is_left_out():
    table = rows({"mae": {2: 0.03}})
    unfinished = (table["arm"] == "mae") & (table["seed"] == 4) & (table["patient"] > "p02")
    point = _point(compare(table[~unfinished]), "mae", 2)
    assert point.difference is not None
    assert (point.difference.replicates, point.difference.dropped_replicates, point.difference.patients) == (4, 1, 12)


def test_one_seed_gives_no_interval():
    point = _point(compare(rows({"mae": {2: 0.5}}, seeds=[0])), "mae", 2)
    assert point.difference is not None and point.difference.low is None and point.verdict() == "no interval"


def test_seeds_within_a_subset_are_averaged():
    """Two seeds on each of three subsets are three replicates, and one seed shared by all subsets is none."""
    table = rows({"mae": {2: 0.03}}, seeds=range(6))
    point = _point(compare(table.assign(subset=table["seed"] // 2, seed=table["seed"] % 2)), "mae", 2)
    assert point.difference is not None
    assert (point.difference.replicates, point.subsets, point.seeds) == (3, 3, 2)
    single = _point(compare(table.assign(subset=0)), "mae", 2)
    assert single.difference is not None and (single.difference.replicates, single.subsets) == (6, 1)


def test_pre_training_runs_of_one_name_stay_apart():
    table = rows({"mae": {2: 0.03}})
    other = table[table["arm"] == "mae"].assign(run="runs/mae-b", pretrain_seed=1)
    arms = {p.arm for p in compare(pd.concat([table, other]))}
    assert arms == {"scratch", "mae (runs/mae)", "mae (runs/mae-b)"}


def _runs(count, effect=0.03, spread=0.01, seeds=range(5)):
    """`count` pre-training runs of one method, whose effects lie around `effect`."""
    offsets = [spread * (i - (count - 1) / 2) for i in range(count)]
    table = rows({f"mae-{i}": {2: effect + offset} for i, offset in enumerate(offsets)}, seeds=seeds)
    scratch = table["arm"] == "scratch"
    number = pd.to_numeric(table["arm"].str.removeprefix("mae-"), errors="coerce")
    return table.assign(method=np.where(scratch, "", "MAE-0a1b2c"), pretrain_seed=number)


def test_three_runs_are_a_method_and_two_are_checkpoints():
    two = compare(_runs(2))
    assert {p.arm for p in two} == {"scratch", "mae-0", "mae-1"} and not any(p.of_method for p in two)
    point = _point(compare(_runs(3)), "MAE", 2)
    assert point.of_method and point.score.runs == point.difference.runs == 3
    assert point.difference.mean == pytest.approx(np.mean([
        _point(compare(_runs(3), pool=False), f"mae-{i}", 2).difference.mean for i in range(3)]))  # fmt: skip
    assert {p.arm for p in compare(_runs(3))} == {"scratch", "MAE"}
    assert (point.difference.replicates, point.difference.patients) == (5, 12)
    assert point.tests.permutation.smallest == 1 / 4**5


def test_what_runs_differ_by_widens_the_interval():
    near, far = (_point(compare(_runs(3, spread=s)), "MAE", 2).difference for s in (0.0, 0.02))
    assert far.half_width > 1.5 * near.half_width and far.mean == pytest.approx(near.mean)


def test_a_run_given_twice_is_no_repetition():
    table = _runs(3)
    again = table[table["arm"] == "mae-2"].assign(arm="mae-2 copy", run="elsewhere")
    points = compare(pd.concat([table, again]))
    assert {p.arm for p in points} == {"scratch", "MAE", "mae-2 copy"}
    assert _point(points, "MAE", 2).score.runs == 3
    two = compare(pd.concat([table[table["arm"] != "mae-0"], again]))
    assert {p.arm for p in two} == {"scratch", "mae-1", "mae-2", "mae-2 copy"}


def test_an_unfinished_run_leaves_two_and_no_interval():
    table = _runs(3)
    point = _point(compare(table[~((table["arm"] == "mae-1") & (table["seed"] > 1))]), "MAE", 2)
    assert point.difference.dropped_runs == 1 and point.difference.low is None
    assert point.difference.reason == "only 2 pre-training runs" and point.verdict() == "no interval"
    assert not point.of_method


def test_old_tables_without_the_column_stay_apart(tmp_path):
    _runs(3).drop(columns="method").to_csv(tmp_path / "results.csv", index=False)
    assert {p.arm for p in compare(read_results(tmp_path))} == {"scratch", "mae-0", "mae-1", "mae-2"}


def test_labels_shuffled_between_arms_give_no_difference():
    """A planted bug: which training of a replicate is called scratch is random. A clear effect must vanish."""
    table = rows({"mae": {2: 0.1}}, seeds=range(8))
    table = table[table["metric"] == "dice"]
    assert _point(compare(table), "mae", 2).verdict() == "better"
    verdicts, small = [], 0
    for draw in range(12):
        swapped = numpy_generator(draw, "shuffle").permutation(8)[:4]
        hit = table["seed"].isin(swapped)
        arm = table["arm"].where(~hit, table["arm"].map({"mae": "scratch", "scratch": "mae"}))
        point = _point(compare(table.assign(arm=arm, run=np.where(arm == "mae", "runs/mae", ""))), "mae", 2)
        verdicts.append(point.verdict())
        small += point.tests.permutation.p <= 0.05
    assert set(verdicts) == {"not distinguishable"} and small == 0


def test_tests_stand_beside_the_interval():
    points = compare(rows({"mae": {1: 0.05, 2: 0.0, 4: -0.05}, "other": {1: 0.0}}))
    dice = [p for p in points if p.metric == "dice" and p.tests]
    assert {p.tests.family for p in dice} == {4}
    for point in dice:
        assert (point.tests.p < 0.05) == (point.verdict() != "not distinguishable")
        assert point.tests.p <= point.tests.p_holm <= 4 * point.tests.p
        assert point.tests.permutation.smallest == 2 / 2**5 <= point.tests.permutation.p
    assert _point(points, "scratch", 1).tests is None
    one = _point(compare(rows({"mae": {2: 0.5}}, seeds=[0])), "mae", 2)
    assert one.tests.p is None and one.tests.permutation.p == 1


def _ill(gain):
    """Predictions of two arms for twelve patients, half of them ill; the arm adds `gain` to what the ill are given."""
    table = rows({"ill": {2: 0.0}}, seeds=range(8))
    table = table[(table["metric"] == "dice") & (table["label"] == "head") & (table["case"].str.endswith("_0"))]
    truth = table.assign(metric="truth", value=(table["patient"] > "p05").astype(float))
    better = truth["value"].to_numpy() * (table["arm"] == "ill").to_numpy()
    score = table.assign(metric="prediction", value=table["value"] + gain * better)
    return pd.concat([score.assign(label="body", value=1 - score["value"]), score, truth])


def test_metrics_of_a_whole_set_enter_as_pseudo_values():
    table = _ill(0.05)
    truth = table[table["metric"] == "truth"]
    score = table[(table["metric"] == "prediction") & (table["label"] == "head")]
    points = compare(table)
    found = _point(points, "ill", 2, "auroc")
    own = score["arm"] == "ill"
    values = [auroc(t["value"].to_numpy(), p[["value"]].to_numpy()) for (_, p), (_, t) in zip(
        score[own].groupby("seed"), truth[truth["arm"] == "ill"].groupby("seed"))]  # fmt: skip
    assert found.score.mean == pytest.approx(np.mean(values)) and found.verdict() == "better"
    assert {p.metric for p in points} == set(CLASSIFICATION)


def test_a_set_metric_at_the_end_of_its_scale_has_no_interval():
    point = _point(compare(_ill(0.5)), "ill", 2, "auroc")
    assert point.score.mean == 1 and point.score.low is None and "scale ends" in point.score.reason
    assert point.difference.low is not None
    assert _point(compare(_ill(0.5)), "ill", 2, "brier").score.mean >= 0


def test_only_the_last_step_counts():
    table = rows({"mae": {2: 0.03}})
    early = table.assign(step=50, value=0.0)
    assert compare(pd.concat([early, table])) == compare(table)


def test_validation_rows_never_enter_the_scores():
    table = rows({"mae": {4: 0.02}})
    assert compare(pd.concat([table, search_rows()])) == compare(table)
    with pytest.raises(ValueError, match="split=test"):
        compare(search_rows())


def test_of_equal_choices_the_first_is_taken():
    trials = search(search_rows().assign(value=0.5))
    assert [(t.arm, t.choice) for t in trials if t.taken] == [("scratch", "lr=0.001"), ("mae", "lr=0.001")]


def test_search_marks_the_best_rate_of_each_arm():
    trials = search(search_rows())
    assert [(t.arm, t.choice) for t in trials if t.taken] == [("scratch", "lr=0.003"), ("mae", "lr=0.003")]
    assert [t.choice for t in trials if t.arm == "mae"] == ["lr=0.001", "lr=0.003", "lr=0.01"]
    assert {t.patients for t in trials} == {4}


def test_the_whole_pool_is_one_subset_and_says_so():
    """Every seed draws all patients: seeds are the replicates, and the numbers hold for these patients."""
    whole = rows({"mae": {4: 0.03}}).assign(subset=0)
    point = _point(compare(whole), "mae", 4)
    assert (point.subsets, point.seeds, point.score.replicates) == (1, 5, 5)


def test_equal_subsets_are_averaged_and_widen_the_interval():
    table = rows({"mae": {1: 0.03}})
    four = table.assign(subset=table["subset"].replace({2: 0}))
    one, other = (_point(compare(t), "mae", 1) for t in (table, four))
    assert (other.subsets, other.score.replicates, other.seeds) == (4, 4, 5)
    assert one.score.replicates == 5
