"""kNN and retrieval on frozen features, against numpy loops and against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapes_store import NETWORK, suite_values

from downstream.frozen_features import Voxels, relative
from downstream.knn import Bank, _places, votes
from downstream.plan import final_cells
from downstream.results import read_cell
from downstream.setup import prepare
from downstream.suite import load_suite
from ssl3d.models.heads import upsample
from ssl3d.models.resenc import ResEncUNet
from ssl3d.schema import ConfigError


def voxels(n: int = 40, features: int = 5, seed: int = 0) -> Voxels:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)) * [1, 10, 0.1, 3, 1] + [0, 100, 0, -3, 2]
    x[:, 4] = 2.0  # a constant feature says nothing
    return Voxels(x.astype(np.float32), rng.integers(0, 3, n), rng.random((n, 3)).astype(np.float32))


def slow_votes(known: Voxels, new: np.ndarray, places: np.ndarray, k: int, t: float, weight: float) -> np.ndarray:
    """The twin, in float64: a loop over voxels."""
    mean, std = known.features.mean(0, dtype=float), known.features.std(0, dtype=float)
    std = np.where(std > 1e-8, std, np.inf)

    def unit(x: np.ndarray) -> np.ndarray:
        z = (x - mean) / std
        return z / np.linalg.norm(z, axis=-1, keepdims=True)

    out = np.zeros((len(new), 3))
    for i, (x, p) in enumerate(zip(unit(new.astype(float)), places)):
        near = unit(known.features.astype(float)) @ x - weight * ((known.places - p) ** 2).sum(1)
        best = np.argsort(-near)[:k]
        for j in best:
            out[i, known.classes[j]] += np.exp((near[j] - 1) / t)
        out[i] /= out[i].sum()
    return out


@pytest.mark.parametrize(("k", "weight"), [(1, 0.0), (7, 0.0), (7, 2.0), (100, 0.5)])
def test_votes_equal_a_loop(k, weight):
    known, new = voxels(), voxels(33, seed=1)
    found = votes(Bank.of(known), torch.from_numpy(new.features), torch.from_numpy(new.places), 3, k, 0.07, weight)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, slow_votes(known, new.features, new.places, k, 0.07, weight), atol=2e-4)


def test_a_labelled_voxel_finds_itself_and_half_precision_is_widened():
    known = voxels()
    bank, x = Bank.of(known), torch.from_numpy(known.features)
    own = votes(bank, x, torch.from_numpy(known.places), 3, 1, 0.07)
    assert (own.argmax(dim=1).numpy() == known.classes).all()
    assert votes(bank, x.bfloat16(), torch.from_numpy(known.places), 3, 3, 0.07).dtype == torch.float32


def test_a_strong_prior_takes_the_nearest_place():
    known, new = voxels(), voxels(20, seed=3)
    found = votes(Bank.of(known), torch.from_numpy(new.features), torch.from_numpy(new.places), 3, 1, 0.07, 1e6)
    distance = ((new.places[:, None] - known.places[None]) ** 2).sum(-1)
    assert (found.argmax(dim=1).numpy() == known.classes[distance.argmin(axis=1)]).all()


MEASURES = {
    "knn": {"_target_": "downstream.knn.Knn", "n_labelled": [1, 2], "seeds": 1, "patch_size": [16, 32, 24],
            "voxels_per_class": 50, "k": 5},
    "retrieve": {"_target_": "downstream.retrieval.Retrieval", "n_labelled": [1], "seeds": 2,
                 "patch_size": [16, 32, 24], "voxels_per_class": 50, "position_weight": 1.0},
}  # fmt: skip


@pytest.fixture
def prepared(labelled_store, split_file, run_folder, tmp_path):
    suite = load_suite(suite_values(labelled_store, split_file, pictures=0, measures=MEASURES))
    context, split, arms, _ = prepare([run_folder], suite, tmp_path / "out")
    choices = {(name, arm.name): () for name in MEASURES for arm in arms}
    return context, [c for c in final_cells(context, split, arms, choices) if not c.arm.is_scratch]


@pytest.mark.slow
def test_cells_of_an_encoder_are_computed_together_and_alike(prepared):
    context, cells = prepared
    for name, measure in context.suite.measures.items():
        own = [c for c in cells if c.measure == name]
        assert len({measure.group(context, c) for c in own}) == 1
        measure.run(context, own)
        together = [read_cell(context.out, context.key(c)) for c in own]
        measure.run(context, own[:1])
        alone = read_cell(context.out, context.key(own[0]))
        assert alone["value"].tolist() == together[0]["value"].tolist()
        assert all(np.isfinite(t["value"]).all() and set(t["patient"]) == set(own[0].scored) for t in together)
        assert measure.title() in ("kNN probe", "Label propagation, near places first")


def test_one_window_is_the_features_of_the_whole_image(prepared):
    context, cells = prepared
    measure = context.measure(cells[0])
    torch.manual_seed(0)
    backbone = ResEncUNet("S", 1, NETWORK).eval()
    image = torch.randn(1, 1, *measure.patch_size)
    known = voxels(30, sum(backbone.channels)) if sum(backbone.channels) == 5 else Voxels(
        np.random.default_rng(0).normal(size=(30, sum(backbone.channels))).astype(np.float32),
        np.random.default_rng(1).integers(0, 3, 30), np.zeros((30, 3), np.float32),
    )  # fmt: skip
    row = context.rows_of(cells[0].scored)[0]
    with torch.no_grad():
        full = torch.cat([upsample(f, image.shape[2:]) for f in backbone.encode(image)], dim=1)[0].flatten(1).T
        found = measure.probabilities(context, backbone, [Bank.of(known)], image, row)[0]
    expected = votes(Bank.of(known), full, torch.zeros(len(full), 3), 3, measure.k, measure.temperature)
    np.testing.assert_allclose(found.reshape(3, -1).T, expected, atol=2e-3)


def test_places_are_relative_to_the_foreground_box(prepared):
    context, cells = prepared
    row = context.rows_of(cells[0].scored)[0]
    low, high = np.asarray(context.store.cell("foreground_box", row)).reshape(2, 3)
    ends = relative(context, row, np.stack([low, high - 1]))
    assert (ends[0] > 0).all() and (ends[1] < 1).all() and np.allclose(ends.sum(axis=0), 1, atol=1e-6)
    shape = context.store.shape(row, "volumes")[1:]
    places = _places(context, row, torch.zeros(1, 1, *shape))
    at = np.array([[1, 5, 3]])
    np.testing.assert_allclose(places[0, :, 1, 5, 3], relative(context, row, at)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("override", "words"),
    [("knn.k=0", "knn.k is 0"), ("knn.temperature=0", "knn.temperature is 0"), ("knn.slices=0", "knn.slices is 0"),
     ("retrieve.position_weight=-1", "position_weight is -1.0; it must be 0 or more")],
)  # fmt: skip
def test_faults_name_their_key(labelled_store, split_file, override, words):
    values = suite_values(labelled_store, split_file, measures=MEASURES)
    with pytest.raises(ConfigError, match=words):
        load_suite(values, [f"measures.{override}"])
