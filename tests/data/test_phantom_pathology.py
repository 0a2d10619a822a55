"""Healthy and diseased organs: the same intensities, told apart by their arrangement alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from ssl3d.data.phantom_pathology import (
    LESION_SHARE,
    SHAPE,
    draw_patient,
    is_diseased,
    same_histogram,
    write_pathology,
)
from ssl3d.data.store import open_store

PATIENTS = 64


def test_one_of_every_two_patients_is_diseased():
    patients = [draw_patient(4, i) for i in range(6)]
    assert [bool(p.lesion.any()) for p in patients] == [is_diseased(4, i) for i in range(6)]
    ill = np.array([is_diseased(4, i) for i in range(PATIENTS)])
    assert (ill.reshape(-1, 2).sum(1) == 1).all() and 0.2 < ill[::2].mean() < 0.8
    shares = [p.lesion_share for p in patients if p.lesion.any()]
    assert min(shares) >= LESION_SHARE[0] - 0.01 and max(shares) <= LESION_SHARE[1] + 0.01
    assert all((p.lesion <= p.organ).all() and 1500 < p.organ.sum() < 6000 for p in patients)


def test_the_same_numbers_give_the_same_patient_and_the_class_changes_the_organ_only():
    one, again = draw_patient(4, 5), draw_patient(4, 5)
    assert (one.image == again.image).all() and not (one.image == draw_patient(5, 5).image).all()
    healthy, ill = draw_patient(4, 5, diseased=False), draw_patient(4, 5, diseased=True)
    assert (healthy.image == ill.image)[~healthy.organ].all() and (healthy.organ == ill.organ).all()
    assert not healthy.lesion.any() and ill.lesion.any()


def test_values_keep_their_order_and_become_normal():
    values = np.random.default_rng(0).gamma(2.0, size=501)
    made = same_histogram(values)
    assert (np.argsort(made) == np.argsort(values)).all()
    assert abs(made.mean()) < 1e-12 and made.std() == pytest.approx(1, abs=0.01)


def interval(truth: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the AUROC over patients."""
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        drawn = rng.integers(0, len(truth), len(truth))
        if 0 < truth[drawn].mean() < 1:
            found.append(roc_auc_score(truth[drawn], score[drawn]))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def predicted(features: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Probabilities of patients that the logistic regression was not fitted on."""
    z = (features - features.mean(0)) / np.maximum(features.std(0), 1e-9)
    return cross_val_predict(LogisticRegression(C=0.1, max_iter=500), z, truth, cv=8, method="predict_proba")[:, 1]


@pytest.mark.slow
def test_intensities_say_nothing_and_arrangement_says_it():
    """Within the organ, in deviations of the body: histogram, mean and variance are at chance; arrangement is not."""
    patients = [draw_patient(4, i) for i in range(PATIENTS)]
    truth = np.array([p.lesion.any() for p in patients]).astype(int)
    histograms, moments, arrangement = [], [], []
    for patient in patients:
        image = patient.image.astype(float)
        body = image[image > 0.3 * np.median(image[patient.organ])]
        image = (image - body.mean()) / body.std()
        organ = image[patient.organ]
        histograms.append(np.histogram(organ, np.linspace(-3, 3, 25))[0] / len(organ))
        moments.append([organ.mean(), organ.var()])
        hessian = [gaussian_filter(image, 1, order=o)[patient.organ] for o in np.ndindex(3, 3, 3) if sum(o) == 2]
        arrangement.append(np.sort(np.linalg.eigvalsh(_structure(hessian))))
    for features in (histograms, moments):
        low, high = interval(truth, predicted(np.array(features), truth))
        assert low <= 0.5 <= high
    low, _ = interval(truth, predicted(np.log(np.array(arrangement)), truth))
    assert low > 0.6


def _structure(second: list[np.ndarray]) -> np.ndarray:
    """Covariance (6,6) of the second derivatives: waves of one direction leave few large eigenvalues."""
    return np.cov(np.array(second)) + 1e-9 * np.eye(6)


def test_the_store_holds_labels_and_targets(tmp_path):
    store = open_store(write_pathology(tmp_path / "store.zarr", 3, seed=4))
    assert len(store) == 3 and store.shape(0) == (1, *SHAPE)
    for row in range(3):
        number = int(store.volume_id(row).split("_")[1]) - 1
        patient = draw_patient(4, number)
        targets = store.cell("targets", row)
        assert targets == {"pathology": float(is_diseased(4, number)), "lesion_share": patient.lesion_share}
        assert (store.read(row, (0, 0, 0), SHAPE)[0] == patient.image).all()
        assert (store.read(row, (0, 0, 0), SHAPE, kind="labels")[0] == patient.organ).all()
        assert np.linalg.det(np.array(store.cell("affine", row)).reshape(4, 4)) != 0
    with pytest.raises(ValueError, match="patients is 0"):
        write_pathology(tmp_path / "none.zarr", 0)
