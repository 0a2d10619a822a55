"""The linear probe against a direct computation on upsampled features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from shapes_store import NETWORK, suite_values

from downstream.frozen_features import class_indices, sample_voxels, voxel_features
from downstream.inference import predict, read_image
from downstream.plan import final_cells
from downstream.probe import fit, stack
from downstream.results import read_cell
from downstream.setup import prepare
from downstream.suite import load_suite
from ssl3d.data.store import open_store
from ssl3d.models.heads import upsample
from ssl3d.models.resenc import ResEncUNet

WINDOW = (16, 24, 12)


@pytest.fixture
def backbone() -> ResEncUNet:
    torch.manual_seed(0)
    return ResEncUNet("S", 1, NETWORK).eval()


def test_features_at_voxels_are_the_upsampled_features(backbone):
    image = torch.randn(1, 1, *WINDOW)
    with torch.no_grad():
        stages = backbone.encode(image)
    full = torch.cat([upsample(f, WINDOW) for f in stages], dim=1)[0].numpy()
    voxels = np.stack([np.random.default_rng(0).integers(0, n, 50) for n in WINDOW], axis=1)
    voxels = np.concatenate([voxels, [[0, 0, 0], [15, 23, 11]]])
    found = voxel_features(backbone, image, voxels, WINDOW, 0.5)
    np.testing.assert_allclose(found, full[:, *voxels.T].T, atol=1e-5)


def test_each_voxel_is_read_where_its_window_is_nearest(backbone):
    """An image of one window length more: every voxel's features are those of one whole window that holds it."""
    image = torch.randn(1, 1, 16, 36, 20)
    voxels = np.array([[0, 0, 0], [8, 17, 9], [15, 35, 19], [3, 20, 11]])
    found = voxel_features(backbone, image, voxels, WINDOW, 0.5)
    for voxel, feature in zip(voxels, found):
        options = []
        for y in (0, 12):
            for x in (0, 6, 8):
                at = voxel - [0, y, x]
                if (at >= 0).all() and (at < WINDOW).all():
                    with torch.no_grad():
                        stages = backbone.encode(image[:, :, :, y : y + 24, x : x + 12])
                    full = torch.cat([upsample(f, WINDOW) for f in stages], dim=1)[0]
                    distance = np.abs(at + 0.5 - np.array(WINDOW) / 2).sum()
                    options.append((distance, full[:, *at].numpy()))
        nearest = min(options, key=lambda o: o[0])[1]
        np.testing.assert_allclose(feature, nearest, atol=1e-5)


def test_fit_minimises_the_stated_loss():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [60, 40, 50])
    x = (rng.normal(size=(150, 4)) * [1, 10, 0.1, 1] + y[:, None] * [1, 5, 0, 0.5] + [0, 100, 0, 3]).astype(np.float32)
    l2 = 0.01
    z = (x - x.mean(0, dtype=float)) / x.std(0, dtype=float)

    def loss(flat: np.ndarray) -> float:
        w, b = flat[:12].reshape(3, 4), flat[12:]
        logits = z @ w.T + b
        logits -= logits.max(axis=1, keepdims=True)
        nll = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(150), y]
        return float(nll.mean() + l2 / 2 * (w**2).sum())

    best = minimize(loss, np.zeros(15), method="BFGS").fun
    found = fit(x, y, 3, l2)
    standard = found.weight * x.std(0, dtype=float)
    flat = np.concatenate([standard.ravel(), found.bias + found.weight @ x.mean(0, dtype=float)])
    assert loss(flat) == pytest.approx(best, rel=1e-4)


def test_absent_classes_and_constant_features_are_harmless():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    x[:, 1] = 5.0
    y = np.repeat([0, 2], 20)
    x[:, 0] += 4 * (y == 2)
    found = fit(x, y, 4, 1e-3)
    assert (found.weight[:, 1] == 0).all() and np.isfinite(found.weight).all()
    logits = x @ found.weight.T + found.bias
    assert (logits.argmax(axis=1) == y).mean() > 0.9
    only = fit(x, np.full(40, 1), 3, 1e-3)
    assert ((x @ only.weight.T + only.bias).argmax(axis=1) == 1).all()


def test_stacked_classifiers_are_the_classifiers(backbone):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, sum(backbone.channels))).astype(np.float32)
    y = rng.integers(0, 3, 60)
    classifiers = [fit(x, y, 3, 0.1), fit(x[::-1].copy(), y, 3, 0.01)]
    head = stack(classifiers, backbone.channels)
    image = torch.randn(1, 1, *WINDOW)
    logits = predict(lambda v: head(backbone.encode(v), v.shape[2:]), image, WINDOW, 0.5)
    with torch.no_grad():
        full = torch.cat([upsample(f, WINDOW) for f in backbone.encode(image)], dim=1)[0].flatten(1).T.numpy()
    expected = np.concatenate([full @ c.weight.T + c.bias for c in classifiers], axis=1)
    np.testing.assert_allclose(logits.flatten(1).T.numpy(), expected, atol=1e-3)


def test_samples_are_balanced_and_reproducible():
    target = np.zeros((6, 7, 8), dtype=np.int64)
    target[1:3] = 1
    target[4, 0, :5] = 2
    target[5] = -1
    drawn = sample_voxels(target, 20, 1, 2, 3)
    assert np.bincount(target[tuple(drawn.T)]).tolist() == [20, 20, 5]
    assert len(np.unique(drawn, axis=0)) == 45
    assert (drawn == sample_voxels(target, 20, 1, 2, 3)).all()
    assert (drawn != sample_voxels(target, 20, 1, 2, 4)).any()


def test_probe_scores_are_those_of_its_classifier(labelled_store, split_file, run_folder, tmp_path):
    """End to end for one cell, recomputed by hand."""
    changes = {"measures": {"probe": {"n_labelled": [2], "seeds": 1, "patch_size": [16, 32, 24], "l2": 0.01}}}
    suite = load_suite(suite_values(labelled_store, split_file, pictures=0, **changes))
    context, split, arms, _ = prepare([run_folder], suite, tmp_path / "out")
    arm = next(a for a in arms if not a.is_scratch)
    (cell,) = final_cells(context, split, [arm], {("probe", arm.name): ()})
    context.measure(cell).run(context, [cell])
    table = read_cell(context.out, context.key(cell))
    assert set(table["patient"]) == set(split.test) and set(table["metric"]) == {"dice", "hd95", "assd"}

    store, backbone = open_store(labelled_store), arm.backbone(0)
    rows = context.rows_of(cell.labelled)
    quota = -(-2000 // len(rows))
    voxels = {r: sample_voxels(class_indices(context, r), quota, suite.seed, cell.seed, r) for r in rows}
    x = np.concatenate([voxel_features(backbone, read_image(store, r), voxels[r], (16, 32, 24), 0.5) for r in rows])
    y = np.concatenate([class_indices(context, r)[tuple(voxels[r].T)] for r in rows])
    head = stack([fit(x, y, 3, 0.01)], backbone.channels)
    from downstream.scoring import score_case

    patient = split.test[0]
    logits = predict(lambda v: head(backbone.encode(v), v.shape[2:]), read_image(store, context.rows[patient][0]),
                     (16, 32, 24), 0.5)  # fmt: skip
    expected = score_case(context, patient, context.rows[patient][0], logits.softmax(0).numpy())
    own = table[table["case"] == expected[0]["case"]]["value"].to_numpy()
    np.testing.assert_allclose(own, [e["value"] for e in expected], atol=1e-6)
