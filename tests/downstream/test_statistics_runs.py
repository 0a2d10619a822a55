"""Pre-training runs as a third factor: known components, limits, holes, coverage, and the p-value of the interval."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from downstream import three_factor
from downstream.statistics import complete_cube, crossed_interval, estimate_runs, p_value
from ssl3d.seeding import numpy_generator

VARIANCES = (0.4, 0.6, 2.0, 0.3, 0.5, 0.8, 1.0)  # in the order of three_factor.EFFECTS


def _table(sizes, variances=VARIANCES, seed=0):
    generator = numpy_generator(seed, "cube", *sizes)
    table = np.zeros(sizes)
    for effect, variance in zip(three_factor.EFFECTS, variances):
        shape = [size if axis in effect else 1 for axis, size in enumerate(sizes)]
        table = table + np.sqrt(variance) * generator.standard_normal(shape)
    return table


def test_mean_squares_against_a_slow_twin():
    table = _table((3, 4, 5))
    mean, squares = three_factor.mean_squares(table)
    assert float(mean) == pytest.approx(table.mean())
    by_run = table.mean((1, 2))
    assert float(squares[(0,)]) == pytest.approx(20 * by_run.var(ddof=1))
    pairs = table.mean(2)
    inner = pairs - pairs.mean(1, keepdims=True) - pairs.mean(0, keepdims=True) + pairs.mean()
    assert float(squares[(0, 1)]) == pytest.approx(5 * (inner**2).sum() / 6)
    freedom = three_factor.degrees((3, 4, 5))
    total = sum(float(squares[effect]) * freedom[effect] for effect in three_factor.EFFECTS)
    assert total == pytest.approx(((table - table.mean()) ** 2).sum())  # the sums of squares are all there is


def test_components_are_recovered():
    found = crossed_interval(_table((60, 60, 60))).components
    names = ("run", "replicate", "patient", "run_replicate", "run_patient", "replicate_patient", "residual")
    for name, variance in zip(names, VARIANCES):
        assert getattr(found, name) == pytest.approx(variance, rel=0.4 if variance > 0.3 else 0.5), name


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_textbook_t_when_only_one_factor_varies(axis):
    values = numpy_generator(axis, "one").normal(0.1, 1, 6)
    shape = [1, 1, 1]
    shape[axis] = 6
    table = np.broadcast_to(values.reshape(shape), [6 if i == axis else 4 for i in range(3)])
    found = crossed_interval(table)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 5, values.mean(), stats.sem(values)))


def test_scaling_and_shifting():
    table = _table((3, 5, 7))
    one, two = crossed_interval(table), crossed_interval(10 * table + 3)
    assert (two.low, two.high) == pytest.approx((10 * one.low + 3, 10 * one.high + 3))


def test_no_variance_gives_no_width():
    found = crossed_interval(np.full((3, 3, 4), 0.25))
    assert (found.low, found.high) == (0.25, 0.25)


@pytest.mark.parametrize(("sizes", "reason"), [((2, 5, 9), "only 2 pre-training runs"), ((3, 2, 9), "only 2 training "
                         "seeds"), ((3, 3, 1), "only one test patient")])  # fmt: skip
def test_too_few(sizes, reason):
    found = crossed_interval(_table(sizes))
    assert (found.low, found.reason, found.runs) == (None, reason, sizes[0])
    assert p_value(_table(sizes)) is None


def test_an_unfinished_run_is_left_out_and_counted():
    table = _table((4, 5, 6))
    frames = [pd.DataFrame(run, columns=list("abcdef")) for run in table]
    frames[3] = frames[3].iloc[:2]
    frames[1].loc[2, "d"] = np.nan
    assert complete_cube(frames).shape == (3, 5, 5)
    found = estimate_runs(frames)
    assert (found.runs, found.dropped_runs, found.replicates, found.dropped_patients) == (3, 1, 5, 1)
    assert found.mean == pytest.approx(np.delete(table[:3], 3, axis=2).mean())


def test_nothing_complete_is_said():
    frames = [pd.DataFrame([[np.nan]]), pd.DataFrame([[np.nan]]), pd.DataFrame([[1.0]])]
    found = estimate_runs(frames[:2])
    assert found.low is None and np.isnan(found.mean) and found.reason is not None


@pytest.mark.parametrize("sizes", [(5, 9), (3, 5, 9)])
def test_the_p_value_is_that_of_the_interval(sizes):
    table = _table((3, 5, 9))[0] if len(sizes) == 2 else _table((3, 5, 9))
    p = p_value(table + 0.8)
    found = crossed_interval(table + 0.8, 1 - p)
    assert min(abs(found.low), abs(found.high)) == pytest.approx(0, abs=1e-6)
    assert p_value(table - table.mean()) == pytest.approx(1, abs=1e-6)
    assert p_value(table + 10) < p_value(table + 1)
