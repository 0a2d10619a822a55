"""Where a curve reaches a target: the monotone fit, its ends, and an interval that inverts the crossed one."""

import numpy as np
import pytest

from downstream.crossing import BELOW, BEYOND, INSIDE, Place, crossing, isotonic, reach
from downstream.statistics import crossed_interval
from ssl3d.seeding import numpy_generator


def test_isotonic_by_hand():
    assert isotonic([1, 3, 2, 4]).tolist() == [1, 2.5, 2.5, 4]
    assert isotonic([3, 2, 1]).tolist() == [2, 2, 2]
    assert isotonic([1, 2, 2, 5]).tolist() == [1, 2, 2, 5]


def test_isotonic_is_monotone_keeps_the_mean_and_is_idempotent():
    values = numpy_generator(0, "isotonic").normal(0, 1, 40)
    fitted = isotonic(values)
    assert (np.diff(fitted) >= 0).all()
    assert fitted.mean() == pytest.approx(values.mean())
    assert isotonic(fitted) == pytest.approx(fitted)


@pytest.mark.parametrize(
    ("target", "place"),
    [
        (0.5, Place(0.0, BELOW)),
        (0.6, Place(0.0)),
        (0.7, Place(0.5)),
        (0.8, Place(1.0)),  # the first x on a flat piece
        (0.85, Place(2.5)),
        (0.9, Place(3.0)),
        (0.91, Place(3.0, BEYOND)),
    ],
)
def test_reach(target, place):
    found = reach([0, 1, 2, 3], [0.6, 0.8, 0.8, 0.9], target)
    assert (found.x, found.side) == (pytest.approx(place.x), place.side)


def _tables(means, noise, sizes=(6, 9), seed=0):
    generator = numpy_generator(seed, "crossing")
    own = noise * generator.normal(0, 1, (len(means), *sizes))
    own -= own.mean(tuple(range(1, own.ndim)), keepdims=True)
    return np.asarray(means).reshape(-1, *[1] * len(sizes)) + own


def test_the_interval_inverts_the_crossed_interval():
    tables = _tables([-0.4, -0.1, 0.3, 0.5], 0.3)
    found = crossing([0, 1, 2, 3], tables)
    assert found.estimate.x == pytest.approx(1.25)
    for place, bound in ((found.low, "high"), (found.high, "low")):
        assert place.side == INSIDE
        k = int(place.x)
        share = place.x - k
        mixed = (1 - share) * tables[k] + share * tables[k + 1]
        assert getattr(crossed_interval(mixed), bound) == pytest.approx(0, abs=1e-4)
    assert found.low.x < found.estimate.x < found.high.x


def test_with_runs_and_narrower_at_a_lower_level():
    tables = _tables([-0.4, -0.1, 0.3, 0.5], 0.3, (3, 5, 8))
    wide, narrow = crossing([0, 1, 2, 3], tables), crossing([0, 1, 2, 3], tables, 0.5)
    assert wide.low.x < narrow.low.x < wide.estimate.x < narrow.high.x < wide.high.x


@pytest.mark.parametrize(
    ("means", "sides"),
    [
        ([-0.9, -0.8, -0.7], (BEYOND, BEYOND, BEYOND)),  # surely past the last x
        ([0.7, 0.8, 0.9], (BELOW, BELOW, BELOW)),
        ([-0.5, -0.3, -0.01], (BEYOND, INSIDE, BEYOND)),
        ([0.01, 0.3, 0.5], (BELOW, BELOW, INSIDE)),
        ([-0.02, 0.0, 0.02], (INSIDE, BELOW, BEYOND)),  # a flat curve says nothing
    ],
)
def test_ends_outside_the_range(means, sides):
    found = crossing([0, 1, 2], _tables(means, 0.3))
    assert (found.estimate.side, found.low.side, found.high.side) == sides


def test_the_estimate_lies_within_and_a_single_x_is_allowed():
    for seed in range(20):
        found = crossing([0, 1, 2, 3], _tables(numpy_generator(seed, "bent").normal(0, 0.2, 4), 0.5, seed=seed))
        order = [(place.side, place.x) for place in (found.low, found.estimate, found.high)]
        assert order == sorted(order)
    alone = crossing([2.0], _tables([-0.5], 0.1))
    assert (alone.estimate.side, alone.low.side, alone.high.side) == (BEYOND, BEYOND, BEYOND)


def test_without_an_interval():
    found = crossing([0, 1], _tables([-1, 1], 0.1, (1, 5)), interval=False)
    assert (found.estimate.x, found.low, found.high) == (pytest.approx(0.5), None, None)
