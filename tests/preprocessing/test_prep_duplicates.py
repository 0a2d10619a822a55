"""Copies of a scan are found however they were stored; scans that are none are left alone."""

import csv
from collections import defaultdict

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy import ndimage
from tests_prep import oblique, save, smooth

from preprocessing import convert, duplicates
from preprocessing.duplicates import exact_duplicates, near_duplicates, read_duplicates
from ssl3d.data.store import open_store


def _moved(affine, voxels):
    out = affine.copy()
    out[:3, 3] += affine[:3, :3] @ np.asarray(voxels, float)
    return out


def _flipped(array, affine, axes):
    out = affine.copy()
    for axis in axes:
        out[:3, 3] += out[:3, axis] * (array.shape[axis] - 1)
        out[:3, axis] *= -1
    return np.flip(array, axes), out


def _resampled(array, affine, factor):
    """On a grid of `factor` times the spacing, low-passed."""
    factor = np.asarray(factor, float)
    count = np.maximum(4, np.round(array.shape / factor)).astype(int)
    first = (np.array(array.shape) - 1) / 2 - (count - 1) / 2 * factor
    places = np.meshgrid(*[f + s * np.arange(n) for f, s, n in zip(first, factor, count)], indexing="ij")
    blurred = ndimage.gaussian_filter(array, np.maximum(0, (factor - 1) / 2))
    values = ndimage.map_coordinates(blurred, places, order=1, mode="nearest")
    return values, _moved(affine, first) @ np.diag([*factor, 1])


def _cropped(array, affine, low, high):
    part = tuple(slice(a, n - b) for a, b, n in zip(low, high, array.shape))
    return array[part], _moved(affine, low)


def copies(array, affine):
    """{kind: (array, affine)}: one scan (X, Y, Z) in many guises, none with equal voxels."""
    f = array.astype(np.float32)
    low, high = np.percentile(f, [0.5, 99.5])
    unit = np.clip((f - low) / (high - low), 0, 1)
    noise = np.random.default_rng(0).normal(0, 0.03 * f.std(), f.shape)
    edge = [max(1, round(0.03 * n)) for n in f.shape]
    return {
        "rescaled": (0.37 * f + 12, affine),
        "zscored": ((f - f.mean()) / f.std(), affine),
        "windowed-uint8": (np.round(255 * unit).astype(np.uint8), affine),
        "int16": (np.round(3000 * unit).astype(np.int16), affine),
        "gamma": (1000 * unit**0.9, affine),
        "float16": ((f / f.max()).astype(np.float16).astype(np.float32), affine),
        "flipped": _flipped(1.01 * f, affine, (0, 1)),
        "upside-down": _flipped(1.02 * f, affine, (2,)),
        "permuted": (1.03 * f.transpose(2, 0, 1), affine @ np.eye(4)[:, [2, 0, 1, 3]]),
        "finer": _resampled(f, affine, (0.8, 0.8, 0.8)),
        "coarser": _resampled(f, affine, (1.5, 1.5, 1.5)),
        "anisotropic": _resampled(f, affine, (0.7, 1.0, 1.9)),
        "noisy": ((f + noise).astype(np.float32), affine),
        "blurred": (ndimage.gaussian_filter(f, 0.6), affine),
        "padded": (np.pad(f, ((4, 6), (3, 3), (0, 8))), _moved(affine, (-4, -3, 0))),
        "cropped": _cropped(f, affine, edge, (0, 0, 0)),
        "elsewhere": (1.04 * f, np.array([[0, 0, 0, 90], [0, 0, 0, -40], [0, 0, 0, 7], [0, 0, 0, 0.0]]) + affine),
    }


def _write(folder, name, array, affine):
    """The scan, its copies as NIfTI, and one each as NRRD, MetaImage and MGZ."""
    save(folder / f"{name}__original.nii.gz", array, affine)
    for kind, (values, its_affine) in copies(array, affine).items():
        save(folder / f"{name}__{kind}.nii.gz", np.ascontiguousarray(values), its_affine)
    nib.save(nib.MGHImage((0.99 * array).astype(np.float32), affine), folder / f"{name}__mgz.mgz")
    axes = np.diag([-1.0, -1, 1]) @ affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    for factor, kind in ((0.98, "nrrd"), (0.97, "mha")):
        image = sitk.GetImageFromArray((factor * array).astype(np.float32).transpose(2, 1, 0))
        image.SetSpacing(spacing.tolist())
        image.SetDirection((axes / spacing).ravel().tolist())
        image.SetOrigin((np.diag([-1.0, -1, 1]) @ affine[:3, 3]).tolist())
        sitk.WriteImage(image, str(folder / f"{name}__{kind}.{kind}"))


def _unfound(store):
    """Copies in the store that are in no pair; also checks that no pair joins two scans."""
    ids = set(open_store(store).index["id"])
    found = read_duplicates(store)
    paired = {name for near in found for name in (near.volume, near.other)}
    assert all(near.volume.split("__")[0] == near.other.split("__")[0] for near in found)
    return {name for name in ids - paired if "__" in name}


def test_every_kind_of_copy_is_found_and_no_other_pair(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(duplicates, "MAX_PARTNERS", 99)
    for number, name in enumerate(("one", "two")):
        affine = np.diag([1.2, 1.1, 1.5, 1]) if number else oblique((1.0, 1.2, 1.4), 25)
        _write(tmp_path / "in", name, 3000 + smooth((44, 37, 30), number, sigma=2.5), affine)
    for number in range(2, 8):
        save(tmp_path / "in" / f"other{number}.nii.gz", smooth((44, 37, 30), number, sigma=2.5))
    report = convert(tmp_path / "in", tmp_path / "store", workers=1)
    assert report.refused == []
    assert _unfound(tmp_path / "store") == set()
    rows = list(csv.DictReader((tmp_path / "store" / "duplicates.csv").open()))
    partners = defaultdict(set)
    for row in rows:
        partners[row["volume"]].add(row["other"])
        partners[row["other"]].add(row["volume"])
    assert len(partners["one__original"]) == len(partners["two__original"]) == 20
    said = capsys.readouterr().out
    assert said.count("look alike (correlation") == 20 and "more pairs look alike" in said


def test_time_frames_and_one_patients_other_scans_are_no_duplicates(tmp_path):
    still = smooth((30, 26, 20))[..., None] + np.random.default_rng(0).normal(0, 3, (30, 26, 20, 4))
    save(tmp_path / "in" / "bold.nii.gz", still.astype(np.float32))
    save(tmp_path / "in" / "rest" / "bold.nii.gz", (smooth((30, 26, 20), 1)[..., None] + still / 50).astype(np.float32))
    convert(tmp_path / "in", tmp_path / "store", workers=1)
    assert len(open_store(tmp_path / "store")) == 8 and read_duplicates(tmp_path / "store") == []


def test_two_series_of_frames_are_one_pair(tmp_path):
    still = smooth((30, 26, 20))[..., None] + np.random.default_rng(0).normal(0, 3, (30, 26, 20, 4))
    save(tmp_path / "in" / "a.nii.gz", still.astype(np.float32))
    save(tmp_path / "in" / "b.nii.gz", (still * 1.1).astype(np.float32))
    convert(tmp_path / "in", tmp_path / "store", workers=1)
    (near,) = read_duplicates(tmp_path / "store")
    assert near.volume.startswith("a_t") and near.other.startswith("b_t") and not near.same_subject


def test_equal_voxels_of_one_series_stay_and_of_two_do_not():
    names = ["x_t0000", "x_t0001", "y_t0000", "p_e1", "p_e2", "q"]
    sources = ["x.nii", "x.nii", "y.nii", "dicom-ab12-e1", "dicom-ab12-e2", "q.nii"]
    index = pd.DataFrame({"id": names, "fingerprint": ["1", "1", "1", "2", "2", "2"], "source": sources})
    order = {name: k for k, name in enumerate(names)}
    assert exact_duplicates(index, order) == {"y_t0000": "x_t0000", "q": "p_e1"}
    index["source"] = [f"{name}.nii" for name in names]  # numbered files are not frames of one
    assert set(exact_duplicates(index, order)) == {"x_t0001", "y_t0000", "p_e2", "q"}


class _Pictures:
    """In place of a store's thumbnails: unrelated pictures, some of them repeated with little noise."""

    def __init__(self, twins):
        self.twins = twins

    def __getitem__(self, row):
        picture = np.random.default_rng(self.twins.get(row, row)).normal(size=(8, 8, 8)).repeat(4, 0).repeat(4, 1)
        picture = picture.repeat(4, 2) + np.random.default_rng(row).normal(0, 0.02, (32, 32, 32))
        return ((picture - picture.mean()) / picture.std()).astype(np.float16)


def _archive(n, hashes):
    return pd.DataFrame({
        "id": [f"v{k:06d}" for k in range(n)], "source": [f"v{k}.nii" for k in range(n)],
        "perceptual_hash": [f"{int(h):016x}" for h in hashes], "subject": [f"p{k}" for k in range(n)],
        "affine": [np.diag([1.0, 1, 1, 1]).ravel().tolist()] * n, "shape": [[40, 50, 60]] * n,
    })  # fmt: skip


def test_no_pair_is_lost_in_a_crowded_bucket(monkeypatch):
    n = 600
    twins = {300: 10, 500: 11, 599: 598}
    monkeypatch.setattr(duplicates, "ThumbnailFile", lambda root: _Pictures(twins))
    monkeypatch.setattr(duplicates, "_BLOCK", 1 << 16)  # the bucket spans many blocks
    found = near_duplicates("store", _archive(n, np.zeros(n, np.uint64)))  # all hashes are equal
    expected = [("v000010", "v000300"), ("v000011", "v000500"), ("v000598", "v000599")]
    assert [(near.volume, near.other) for near in found] == expected


@pytest.mark.parametrize("flips", [1, 7])
def test_up_to_seven_flipped_bits_are_never_missed(monkeypatch, flips):
    generator = np.random.default_rng(flips)
    n = 4000
    hashes = generator.integers(0, 1 << 63, n, dtype=np.uint64)
    twins = {}
    for pair in range(60):
        bits = generator.choice(64, flips, replace=False)
        hashes[2 * pair + 1] = hashes[2 * pair] ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64))
        twins[2 * pair + 1] = 2 * pair
    monkeypatch.setattr(duplicates, "ThumbnailFile", lambda root: _Pictures(twins))
    assert len(near_duplicates("store", _archive(n, hashes))) == 60


@pytest.mark.slow
def test_the_hippocampus_archive_holds_no_pair_and_every_copy_made_of_it_is_found(data, look_of, monkeypatch):
    def pairs(of):
        monkeypatch.setattr(duplicates, "ThumbnailFile", lambda root: of[0])
        return near_duplicates("store", of[1])

    monkeypatch.setattr(duplicates, "MAX_PARTNERS", 99)
    files = sorted((data / "Task04_Hippocampus" / "imagesTr").glob("hippo*.nii.gz"))
    images = {file.name.split(".")[0]: nib.load(file) for file in files}
    scans = {name: (np.asarray(image.dataobj), image.affine) for name, image in images.items()}
    archive = look_of(scans)
    assert len(archive[0]) == 174 and pairs(archive) == []
    for name in list(scans)[:120:40]:
        made = {f"{name}__{kind}": copy for kind, copy in copies(*scans[name]).items()}
        more = look_of(made)
        found = pairs((archive[0] + more[0], pd.concat([archive[1], more[1]], ignore_index=True)))
        assert all(near.volume.split("__")[0] == near.other.split("__")[0] == name for near in found)
        assert {other for near in found for other in (near.volume, near.other)} == {name, *made}
