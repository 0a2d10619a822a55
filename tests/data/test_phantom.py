"""The synthetic anatomy: deterministic, a valid MSD folder, and solvable by texture and context only."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import HistGradientBoostingClassifier

from ssl3d.data.phantom import CLASSES, write_phantom
from ssl3d.data.phantom_shapes import ORGAN_BANDS_MM, TISSUE_BAND_MM, Texture, draw_anatomy
from ssl3d.seeding import numpy_generator


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom"), patients=24, seed=3)


def cases(folder: Path) -> list[str]:
    return [Path(item["image"]).name for item in json.loads((folder / "dataset.json").read_text())["training"]]


def voxels(folder: Path, name: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image and label in canonical orientation."""
    image, label = (nib.as_closest_canonical(nib.load(folder / kind / name)) for kind in ("imagesTr", "labelsTr"))
    return np.asarray(image.dataobj, np.float32), np.asarray(label.dataobj)


def test_the_folder_is_msd_with_patients_and_targets(phantom: Path) -> None:
    names = cases(phantom)
    assert sorted(p.name for p in (phantom / "imagesTr").iterdir()) == sorted(names)
    assert sorted(p.name for p in (phantom / "labelsTr").iterdir()) == sorted(names)
    patients = json.loads((phantom / "patients.json").read_text())
    assert len(patients) == 24 and {len(group) for group in patients.values()} == {1, 2}
    assert sorted(f"{c}.nii.gz" for group in patients.values() for c in group) == sorted(names)
    with (phantom / "targets.csv").open() as file:
        targets = list(csv.DictReader(file))
    assert [f"{row['case']}.nii.gz" for row in targets] == names
    assert {row["lesion"] for row in targets} == {"0", "1"}
    assert all((float(row["lesion_extent"]) > 0) == (row["lesion"] == "1") for row in targets)


def test_the_grids_and_types_are_mixed(phantom: Path) -> None:
    images = [nib.load(phantom / "imagesTr" / name) for name in cases(phantom)]
    assert {str(image.get_data_dtype()) for image in images} == {"int16", "float32"}
    assert len({"".join(nib.aff2axcodes(image.affine)) for image in images}) > 5
    spacings = np.array([image.header.get_zooms() for image in images])
    assert (np.ptp(spacings, axis=1) > 0.2).any() and (np.ptp(spacings, axis=1) < 1e-3).any()
    oblique = [np.abs(image.affine[:3, :3] / s).max(0).min() < 0.999 for image, s in zip(images, spacings)]
    assert np.mean(oblique) > 0.5
    assert max(image.shape[0] for image in images) <= 56
    scales = [np.percentile(np.asarray(image.dataobj), 99) for image in images]
    assert max(scales) > 10 * min(scales)


def test_every_scan_shows_both_organs_inside_the_body(phantom: Path) -> None:
    for name in cases(phantom):
        image, label = voxels(phantom, name)
        assert set(np.unique(label)) == set(CLASSES)
        assert np.median(image[label > 0]) > 4 * np.median(image[:3])
        border = np.concatenate([np.take(label, k, axis).ravel() for axis in range(3) for k in (0, -1)])
        assert not border.any()


def test_the_same_seed_gives_the_same_voxels(tmp_path: Path) -> None:
    first, second = (write_phantom(tmp_path / name, patients=2, seed=5) for name in "ab")
    other = write_phantom(tmp_path / "c", patients=2, seed=6)
    for name in cases(first):
        assert np.array_equal(voxels(first, name)[0], voxels(second, name)[0])
    a, c = voxels(first, "phantom_001.nii.gz")[0], voxels(other, "phantom_001.nii.gz")[0]
    assert a.shape != c.shape or not np.array_equal(a, c)


def test_no_patients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patients is 0"):
        write_phantom(tmp_path, patients=0)


@pytest.mark.slow
def test_textures_share_their_histogram_and_arrangements_their_spectrum() -> None:
    """Standard normal values for every kind and band; within a band, an isotropic filter leaves the same variance."""
    axis = np.arange(32, dtype=float)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    for band in (TISSUE_BAND_MM, *ORGAN_BANDS_MM.values()):
        left = []
        for kind in ("grain", "sheets", "fibres"):
            fields = [Texture.draw(numpy_generator(k, kind), kind, band)(points).reshape(32, 32, 32) for k in range(24)]
            values = np.concatenate([field.ravel() for field in fields])
            assert abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.05
            assert abs((values**4).mean() - 3) < 0.6  # kurtosis of a normal: no histogram gives the kind away
            left.append(np.mean([gaussian_filter(field, 1.0)[6:-6, 6:-6, 6:-6].std() for field in fields]))
        if band != TISSUE_BAND_MM:  # whose periods do not fit the cube
            assert np.ptp(left) < 0.05


def test_lesions_leave_the_volume_mean_and_spread_alone() -> None:
    axis = np.arange(-25, 26, 1.7)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    moments: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for lesion in (True, False):
        for k in range(12):
            anatomy = draw_anatomy(numpy_generator(k, "lesion"), lesion)
            assert (anatomy.lesion_extent > 0) == lesion
            value, _, inside = anatomy.paint(points)
            moments[lesion].append((float(value[inside].mean()), float(value[inside].std())))
    difference = np.mean(moments[True], 0) - np.mean(moments[False], 0)
    assert np.abs(difference).max() < 0.1


def _features(image: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(N,8): intensity, three Gaussian smoothings, position in the body's box and distance from its centre."""
    image = (image - image[inside].mean()) / image[inside].std()
    where = np.argwhere(inside)
    low, high = where.min(0), where.max(0)
    position = 2 * (where - low) / (high - low) - 1
    columns = [image[inside], *(gaussian_filter(image, sigma)[inside] for sigma in (1, 2, 4)), *position.T]
    return np.stack([*columns, np.linalg.norm(position, axis=1)], axis=1).astype(np.float32)


def test_a_voxelwise_classifier_cannot_find_the_organs(phantom: Path) -> None:
    """Gradient boosting on intensity, smoothed intensity and position: mean foreground Dice <= 0.4, even when its
    threshold is chosen on the very scans it is scored on."""
    rng, rows = np.random.default_rng(0), []
    for name in cases(phantom):
        image, label = voxels(phantom, name)
        smooth = gaussian_filter(image, 1.5)
        inside = (smooth > 0.5 * np.median(smooth[label > 0])) | (label > 0)
        rows.append((_features(image, inside), label[inside]))
    train, test = rows[:20], rows[20:]
    picks = [rng.choice(len(y), 2000, replace=False) for _, y in train]
    model = HistGradientBoostingClassifier(max_iter=60, random_state=0)
    model.fit(*(np.concatenate([row[k][pick] for row, pick in zip(train, picks)]) for k in (0, 1)))

    def dice(threshold: float) -> float:
        scores = []
        for (_, label), chance in zip(test, chances):
            found = np.where(chance[:, 1:].sum(1) > threshold, 1 + chance[:, 1:].argmax(1), 0)
            for c in (1, 2):
                both = ((found == c) & (label == c)).sum()
                scores.append(2 * both / ((found == c).sum() + (label == c).sum()))
        return float(np.mean(scores))

    chances = [model.predict_proba(x) for x, _ in test]
    best = max(dice(threshold) for threshold in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5))
    assert 0.02 < best <= 0.4
