"""Probes of frozen volumes: against slow twins, patients and not scans count, every class has its column."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from downstream.volume import VolumeTarget
from downstream.volume_probe import TEMPERATURE, VolumeNeighbours, VolumeProbe, standardised

CLASSES = VolumeTarget("grade", "classification", ("a", "b", "c"), (0.0, 1.0, 2.0), {}, {}, 0)
NUMBER = VolumeTarget("age", "regression", (), (), {}, {}, 0)
FIXED = {"n_labelled": [2], "patch_size": (8, 8, 8)}


def features(seed: int, n: int = 14, f: int = 6) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    x, new = rng.normal(3, [1, 5, 0.1, 2, 1, 1], (n, f)), rng.normal(3, [1, 5, 0.1, 2, 1, 1], (4, f))
    x[:, 4] = new[:, 4] = 7.0  # constant: says nothing
    return x, rng.choice([0.5, 1.0], n), new


@pytest.mark.parametrize("seed", range(3))
def test_the_logistic_probe_minimises_what_it_says(seed):
    x, weight, new = features(seed)
    y = np.arange(len(x)) % 3.0
    found = VolumeProbe(**FIXED, l2=0.1).predict(CLASSES, x, y, weight, new)
    z, z_new = standardised(x, weight, new)
    target = np.eye(3)[y.astype(int)]

    def loss(flat):
        w, b = flat[:18].reshape(6, 3), flat[18:]
        logits = z @ w + b
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -(weight[:, None] * target * log_p).sum() / weight.sum() + 0.05 * (w**2).sum()

    best = minimize(loss, np.zeros(21), tol=1e-10).x
    logits = z_new @ best[:18].reshape(6, 3) + best[18:]
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_ridge_probe_is_the_closed_form(seed):
    x, weight, new = features(seed)
    y = x[:, 1] * 2 + np.random.default_rng(seed).normal(size=len(x))
    found = VolumeProbe(**FIXED, l2=0.1).predict(NUMBER, x, y, weight, new)
    z, z_new = standardised(x, weight, new)
    centre = np.average(y, weights=weight)
    gram = z.T @ (weight[:, None] * z) / weight.sum() + 0.1 * np.eye(6)
    slope = np.linalg.solve(gram, z.T @ (weight * (y - centre)) / weight.sum())
    np.testing.assert_allclose(found[:, 0], z_new @ slope + centre, rtol=1e-8)


@pytest.mark.parametrize("measure", [VolumeProbe, VolumeNeighbours])
def test_two_scans_of_a_patient_weigh_as_one(measure):
    x, _, new = features(0, 6)
    y = np.array([0.0, 1, 2, 0, 1, 2])
    one = measure(**FIXED).predict(CLASSES, x, y, np.ones(6), new)
    twice = np.concatenate([x, x[:1]])
    weight = np.array([0.5, 1, 1, 1, 1, 1, 0.5])
    model = measure(**FIXED, **({"neighbours": 6} if measure is VolumeNeighbours else {}))
    more = measure(**FIXED, **({"neighbours": 7} if measure is VolumeNeighbours else {}))
    np.testing.assert_allclose(more.predict(CLASSES, twice, np.append(y, 0), weight, new),
                               model.predict(CLASSES, x, y, np.ones(6), new), atol=1e-4)  # fmt: skip
    assert one.shape == (4, 3) and np.allclose(one.sum(1), 1)


def slow_neighbours(x, y, new, k):
    """Vote by vote."""
    z, z_new = standardised(x, np.ones(len(x)), new)
    found = []
    for point in z_new:
        near = [(point @ other / np.linalg.norm(point) / np.linalg.norm(other), i) for i, other in enumerate(z)]
        near = sorted(near, key=lambda pair: -pair[0])[:k]
        votes = np.zeros(3)
        for similarity, i in near:
            votes[int(y[i])] += np.exp(similarity / TEMPERATURE)
        found.append(votes / votes.sum())
    return np.array(found)


@pytest.mark.parametrize("k", [1, 3, 50])
def test_neighbours_equal_their_slow_twin(k):
    x, _, new = features(5)
    y = np.arange(len(x)) % 3.0
    model = VolumeNeighbours(**FIXED, neighbours=k)
    np.testing.assert_allclose(
        model.predict(CLASSES, x, y, np.ones(len(x)), new), slow_neighbours(x, y, new, k), rtol=1e-9
    )
    numbers = model.predict(NUMBER, x, y, np.ones(len(x)), new)[:, 0]
    np.testing.assert_allclose(numbers, slow_neighbours(x, y, new, k) @ [0, 1, 2], rtol=1e-9)


@pytest.mark.parametrize("measure", [VolumeProbe, VolumeNeighbours])
def test_one_labelled_volume_says_its_own_class(measure):
    x, _, new = features(1, 1)
    assert (measure(**FIXED).predict(CLASSES, x, np.array([2.0]), np.ones(1), new) == [[0, 0, 1]] * 4).all()
    assert (measure(**FIXED).predict(NUMBER, x, np.array([41.0]), np.ones(1), new) == 41).all()
    two = measure(**FIXED).predict(CLASSES, features(1, 4)[0], np.array([0.0, 2, 0, 2]), np.ones(4), new)
    assert (two[:, 1] == 0).all() and np.allclose(two.sum(1), 1)  # of a class never seen
