"""Which scans are CT, MR or neither, and which are masks that only pose as scans."""

import json

import numpy as np
import pytest
from tests_prep import save, smooth

from preprocessing import convert, modality
from preprocessing.masks import looks_like_labels
from preprocessing.refusal import Refusal
from ssl3d.data.phantom import patient_scans
from ssl3d.data.store import open_store


def _body(shape=(24, 40, 50), seed=0):
    """A chest in HU: noisy air, soft tissue, a lung, bone."""
    noise = np.random.default_rng(seed).normal(0, 12, shape)
    values = np.full(shape, -1000.0)
    values[2:-2, 6:-6, 6:-6] = 40
    values[6:-6, 12:24, 12:24] = -820
    values[4:-4, 28:32, 20:30] = 700
    return np.rint(values + noise).astype(np.int16)


def test_names_state_modalities():
    names = ("MRI", "T1w", "CT", "PET", "FLAIR", "noise", "contrast", "ultrasound", "SPECT")
    expected = ["mr", "mr", "ct", "pet", "mr", None, None, "other", "other"]
    assert [modality.from_name(n) for n in names] == expected


@pytest.mark.parametrize("change", [lambda v: v, lambda v: v * 1.0, lambda v: v + 0.37, lambda v: v[:, 6:-6, 6:-6]])
def test_hu_are_recognised_with_confidence(change):
    guess = modality.infer(change(_body()))
    assert guess.modality == "ct" and guess.confidence >= modality.SURE


@pytest.mark.parametrize(
    "values",
    [
        np.clip((_body() + 160.0) * 255 / 400, 0, 255).astype(np.uint8),  # a soft-tissue window in 8 bits
        _body() + 1024,  # the rescale intercept was lost
        (_body() - _body().mean()) / _body().std(),  # z-scores
        np.clip((_body() + 1000.0) / 2000, 0, 1),
        _body()[8:-8, 24:27, 24:40],  # a crop without air
    ],
)
def test_what_could_be_ct_but_has_no_hu_is_mr_and_unsure(values):
    guess = modality.infer(values)
    assert guess.modality == "mr" and guess.unsure


@pytest.mark.parametrize("factor", [0.3, 1.0, 40.0])
def test_magnitude_images_are_mr_for_sure(factor):
    values = np.abs(smooth((12, 20, 22)) + np.random.default_rng(0).normal(0, 30, (12, 20, 22))) * factor
    values[:3] = np.abs(np.random.default_rng(1).normal(0, 9 * factor, (3, 20, 22)))
    guess = modality.infer(np.rint(values) if factor > 1 else values)
    assert guess.modality == "mr" and not guess.unsure


def test_smooth_textures_around_any_value_are_not_ct():
    for offset in (0, -524, -1024):
        assert modality.infer(smooth((10, 20, 20)) + offset).modality == "mr"


def test_what_is_said_wins_and_impossible_ct_does_not():
    body = _body()[None]
    assert modality.of_channels(body, "mr", ["ct"]) == [modality.Guess("mr")]
    assert modality.of_channels(body, "auto", ["mr"]) == [modality.Guess("mr")]
    assert modality.of_channels(body, "auto", [None])[0].modality == "ct"
    windowed = np.clip(body, 0, 200)
    assert modality.of_channels(windowed, "auto", ["ct"])[0] == modality.Guess("mr", 0.5)
    assert modality.of_channels(windowed, "ct", None) == [modality.Guess("ct")]


def test_pet_is_refused_unless_it_is_asked_for_or_goes_with_ct():
    scans = np.stack([_body(), np.abs(_body())])
    with pytest.raises(Refusal, match="--modality pet") as caught:
        modality.of_channels(scans[1:], "auto", ["pet"])
    assert caught.value.reason == "modality_refused"
    with pytest.raises(Refusal, match="--modality other"):
        modality.of_channels(scans, "auto", ["other", "pet"])
    assert [g.modality for g in modality.of_channels(scans, "auto", ["ct", "pet"])] == ["ct", "pet"]
    assert [g.modality for g in modality.of_channels(scans, "pet", ["other", "pet"])] == ["pet", "pet"]


def test_the_store_says_what_was_refused_and_what_is_unsure(tmp_path):
    root = tmp_path / "Task"
    save(root / "imagesTr" / "a.nii.gz", smooth((12, 14, 9)))
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "PET"}, "labels": {"0": "background"}}))
    assert [reason for _, reason in convert(root, tmp_path / "none", workers=1).refused] == ["modality_refused"]
    convert(root, tmp_path / "pet", modality="pet", workers=1)
    index = open_store(tmp_path / "pet").index
    assert index["modality"][0] == ["pet"] and modality.UNSURE_FLAG not in index["flags"][0]
    window = np.clip((_body() + 160.0) * 255 / 400, 0, 255).astype(np.uint8)
    convert(save(tmp_path / "window.nii.gz", window), tmp_path / "unsure", workers=1)
    index = open_store(tmp_path / "unsure").index
    assert index["modality"][0] == ["mr"] and modality.UNSURE_FLAG in index["flags"][0]


def _spheres(shape=(20, 40, 30), classes=1):
    """Balls of labels 1..classes."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    label = np.zeros(shape, np.int16)
    generator = np.random.default_rng(0)
    for value in range(1, classes + 1):
        centre = generator.uniform(0.2, 0.8, 3) * shape
        label[((grid - centre[:, None, None, None]) ** 2).sum(0) < generator.uniform(4, 7) ** 2] = value
    return label


def test_masks_and_parcellations_look_like_labels():
    for classes in (1, 3, 40):
        label = _spheres(classes=classes)
        assert looks_like_labels(label) and looks_like_labels(label.astype(np.float32))
    assert looks_like_labels(_spheres(classes=3) * 0.25)  # stored as fractions
    assert looks_like_labels(_spheres() * -1 + 1)
    vessel = np.zeros((30, 20, 25), np.uint8)
    vessel[:, 9:11, 12] = 1
    assert looks_like_labels(vessel)


def test_scans_do_not_look_like_labels():
    generator = np.random.default_rng(0)
    assert not looks_like_labels(_body())
    assert not looks_like_labels(np.zeros((9, 8, 7)))
    assert not looks_like_labels(generator.integers(0, 2, (20, 30, 25)))  # two values, but noise
    assert not looks_like_labels(generator.integers(0, 16, (20, 30, 25)))
    coarse = (smooth((30, 40, 35), sigma=2) // 90).clip(0, 15)  # a scan of 4 bits
    assert len(np.unique(coarse)) > 8 and not looks_like_labels(coarse)
    stripped = np.where(_spheres() > 0, smooth((20, 40, 30)), 0).astype(np.uint8)  # a brain in a field of zeros
    assert not looks_like_labels(stripped)
    graded = np.clip(255 * (smooth((30, 40, 35), sigma=4) - 400) / 200, 0, 255).astype(np.uint8)  # a probability map
    assert not looks_like_labels(graded)
    for scan in patient_scans(0, 1)[0]:
        assert not looks_like_labels(scan.image) and looks_like_labels(scan.label)


def test_a_mask_is_refused_as_a_scan_and_taken_as_a_label(tmp_path):
    save(tmp_path / "in" / "scan.nii.gz", smooth((20, 40, 30)))
    save(tmp_path / "in" / "second.nii.gz", _spheres(classes=3))
    save(tmp_path / "labels" / "scan.nii.gz", _spheres(classes=3).astype(np.uint8))
    report = convert(tmp_path / "in", tmp_path / "store", labels=tmp_path / "labels", workers=1)
    assert report.converted == 1 and [reason for _, reason in report.refused] == ["looks_like_labels"]
    assert open_store(tmp_path / "store").index["has_label"].tolist() == [True]
