"""The permutation test: exact values by hand, its unit, its limits, and its error rate under the null it names."""

from itertools import product

import numpy as np
import pytest

from downstream import permutation
from downstream.permutation import holm, permutation_test
from ssl3d.seeding import numpy_generator


def test_by_hand():
    found = permutation_test([[1.0, 3.0], [2.0, 2.0], [-1.0, -1.0]])  # replicate means 2, 2, -1
    sums = [2 * a + 2 * b - c for a, b, c in product((1, -1), repeat=3)]
    assert found.p == sum(abs(value) >= 3 for value in sums) / 8
    assert (found.arrangements, found.exact, found.smallest, found.replicates) == (8, True, 0.25, 3)
    assert "training replicate" in found.unit


@pytest.mark.parametrize("replicates", [1, 3, 5, 10])
def test_the_smallest_p_is_reached_and_never_undercut(replicates):
    found = permutation_test(np.full((replicates, 4), 0.1) + np.arange(replicates)[:, None] * 1e-3)
    assert found.p == found.smallest == 2 / 2**replicates


def test_with_runs_any_training_of_a_replicate_may_be_called_scratch():
    table = np.array([[[1.0], [2.0]], [[1.5], [1.8]]])  # (R 2, S 2, P 1)
    found = permutation_test(table)
    scores = [(0.0, 1.0, 1.5), (0.0, 2.0, 1.8)]
    moves = [[(sum(row) - x) / 2 - x for x in row] for row in scores]
    sums = [a + b for a in moves[0] for b in moves[1]]
    assert found.p == sum(abs(value) >= abs(sums[0]) - 1e-12 for value in sums) / 9
    assert (found.arrangements, found.smallest) == (9, 1 / 9)


def test_zero_differences_are_no_evidence():
    assert permutation_test(np.zeros((5, 4))).p == 1


def test_monte_carlo_when_there_are_many(monkeypatch):
    table = numpy_generator(0, "mc").normal(0.3, 1, (12, 3))
    exact = permutation_test(table)
    monkeypatch.setattr(permutation, "MOST", 100)
    drawn = permutation_test(table)
    assert not drawn.exact and drawn.arrangements == permutation.DRAWS + 1
    assert drawn.p == pytest.approx(exact.p, abs=0.02)
    assert drawn == permutation_test(table)  # seeded
    assert permutation_test(table + 100).p >= drawn.smallest > 0


def test_a_table_with_holes_is_refused():
    with pytest.raises(ValueError, match="complete"):
        permutation_test([[1.0, np.nan]])


def test_false_positives_under_the_sharp_null():
    """Skewed scores, luck shared by all patients of a training: still no more than 5 %."""
    generator = numpy_generator(1, "sharp null")
    rejected = 0
    for _ in range(400):
        scores = generator.exponential(1, (2, 6, 1)) + generator.exponential(1, (2, 6, 5)) * generator.random((1, 1, 5))
        rejected += permutation_test(scores[0] - scores[1]).p <= 0.05
    assert rejected / 400 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_false_positives_with_runs():
    generator = numpy_generator(2, "sharp null")
    rejected = 0
    for _ in range(300):
        scores = generator.exponential(1, (4, 4, 1)) + generator.exponential(1, (4, 4, 5))
        rejected += permutation_test(scores[1:] - scores[0]).p <= 0.05
    assert rejected / 300 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, None, 0.9]) == pytest.approx([0.02, None, 0.9])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
