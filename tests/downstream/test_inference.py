"""Sliding windows, and labels that come back to the original grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapes_store import suite_values
from torch import nn

from downstream.context import Context, store_digest
from downstream.inference import (
    original_affine,
    pad_to,
    predict,
    read_image,
    read_reference,
    resample,
    to_labels,
    window_starts,
)
from downstream.scoring import score_case
from downstream.setup import labelled_rows
from downstream.suite import load_suite
from preprocessing.geometry import canonical_grid
from ssl3d.data.store import open_store


@pytest.mark.parametrize("size", [(9, 20, 13), (16, 24, 16), (3, 50, 16)])
def test_windows_of_a_voxelwise_function_give_the_function(size):
    torch.manual_seed(0)
    network = nn.Conv3d(2, 3, 1)
    image = torch.randn(1, 2, *size)
    with torch.no_grad():
        expected = network(image)[0]
    out = predict(network, image, (8, 24, 16), overlap=0.5)
    assert out.shape == (3, *size)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_windows_are_always_whole_and_small_volumes_are_padded_with_air():
    seen = []

    def network(x):
        seen.append(x)
        return x

    image = torch.rand(1, 1, 5, 30, 7) + 2
    image[0, 0, 0, 0, 0] = -4.0
    predict(network, image, (8, 16, 8), overlap=0.5)
    assert all(x.shape[2:] == (8, 16, 8) for x in seen)
    padded, before = pad_to(image, (8, 16, 8))
    assert padded.shape[2:] == (8, 30, 8) and before == (1, 0, 0)
    assert (padded[:, :, 0] == -4).all() and (padded[:, :, :, :, 7] == -4).all()
    assert torch.equal(padded[:, :, 1:6, :, :7], image)


@pytest.mark.parametrize(("size", "window", "overlap"), [(16, 16, 0.5), (17, 16, 0.5), (100, 16, 0.25), (40, 8, 0.9)])
def test_window_starts_cover_the_axis(size, window, overlap):
    starts = window_starts(size, window, overlap)
    covered = np.unique(np.concatenate([np.arange(s, s + window) for s in starts]))
    assert (covered == np.arange(size)).all()


def test_the_original_affine_is_the_one_preprocessing_moves_labels_with(labelled_store):
    store = open_store(labelled_store)
    for row in range(len(store)):
        attributes = store.attributes(row)
        shape, expected = canonical_grid(np.array(attributes.original_affine), attributes.original_shape)
        np.testing.assert_allclose(original_affine(attributes), expected, atol=1e-9)
        assert read_reference(store, row).label.shape == shape


def test_perfect_stored_labels_score_about_1_on_the_original_grid(labelled_store, split_file, tmp_path):
    """The reference is drawn on the original grid from the shapes themselves: a shift or flip would show."""
    store = open_store(labelled_store)
    suite = load_suite(suite_values(labelled_store, split_file))
    context = Context(suite, tmp_path, labelled_rows(store), {3: "ball", 7: "rod"}, None, store_digest(store))
    for row in range(0, len(store), 3):
        reference = read_reference(store, row)
        assert reference.label.shape != store.shape(row, "labels")[1:]
        assert sorted(reference.spacing) == pytest.approx([0.8, 1.1, 3.0])
        label = store.read(row, (0, 0, 0), store.shape(row, "labels")[1:], kind="labels")[0]
        probabilities = np.stack([label == v for v in (0, 3, 7)]).astype(np.float32)
        rows = {(r["label"], r["metric"]): r["value"] for r in score_case(context, "p", row, probabilities)}
        assert rows["ball", "dice"] > 0.93 and rows["rod", "dice"] > 0.8  # a rod of 4.8 mm under slices of 3 mm
        assert max(rows["ball", "hd95"], rows["rod", "hd95"]) <= 3.01  # a slice


def test_resampling_follows_the_world_under_a_rotation():
    rng = np.random.default_rng(0)
    source, target = np.eye(4), np.eye(4)
    angle = np.deg2rad(30)
    target[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    target[:3, 3] = [4, 1, 2]
    coefficients = rng.normal(size=4)
    field = (np.stack(np.meshgrid(*(np.arange(n) for n in (20, 22, 18)), indexing="ij"), -1) @ coefficients[:3])[None]
    out = resample((field + coefficients[3]).astype(np.float32), source, target, (5, 6, 7))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (5, 6, 7)), indexing="ij"), -1)
    world = index @ target[:3, :3].T + target[:3, 3]
    inside = (world >= 0).all(-1) & (world <= [19, 21, 17]).all(-1)
    expected = world @ coefficients[:3] + coefficients[3]
    assert inside.sum() > 50
    np.testing.assert_allclose(out[0][inside], expected[inside], atol=1e-4)


def test_resampling_to_the_same_grid_changes_nothing():
    p = np.random.default_rng(1).random((2, 3, 4, 5)).astype(np.float32)
    affine = np.diag([2.0, 1.0, 0.5, 1.0])
    assert resample(p, affine, affine + 1e-9, (3, 4, 5)) is p


def test_labels_are_the_values_of_the_store():
    p = np.zeros((3, 1, 1, 3))
    p[[0, 1, 2], 0, 0, [0, 1, 2]] = 1
    assert to_labels(p, [3, 900]).ravel().tolist() == [0, 3, 900]


def test_an_image_is_read_as_the_loop_reads_it(labelled_store):
    store = open_store(labelled_store)
    image = read_image(store, 0)
    assert image.dtype == torch.float32 and image.shape[1:] == store.shape(0)
    assert abs(float(image.mean())) < 0.05 and abs(float(image.std()) - 1) < 0.05
    fixed = read_image(store, 0, {"low": 0.0, "high": 100.0, "mean": 0.0, "std": 100.0})
    assert float(fixed.min()) >= 0 and float(fixed.max()) <= 1
