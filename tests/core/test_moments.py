"""Standardisation: beside numpy and its own definition with rows repeated."""

from __future__ import annotations

import numpy as np

from ssl3d.moments import moments


def test_weights_are_repetitions_and_a_constant_becomes_zero():
    x = np.random.default_rng(0).normal(5, 3, (7, 4)).astype(np.float32)
    x[:, 2] = 1.5
    times = np.array([1, 3, 2, 1, 1, 4, 2])
    mean, deviation = moments(x, times.astype(np.float64))
    again = np.repeat(x, times, axis=0)
    others = moments(again)
    for found, expected in zip((mean, deviation), others):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    standard = (again - mean) / deviation
    assert (standard[:, 2] == 0).all() and np.isinf(deviation[2])
    np.testing.assert_allclose(standard[:, [0, 1, 3]].std(axis=0), 1, rtol=1e-6)
