"""DICOM segmentations: matched to the series they name, put on its grid, refused in words of their own."""

import dicom_prep as files
import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from preprocessing import convert, readers
from preprocessing.job import Settings
from preprocessing.refusal import Refusal
from preprocessing.work import LABEL_REFUSED, convert_here
from ssl3d.data.store import open_store
from ssl3d.data.write import build_index, create_store


def _segmentation(path, paths, mask, kind="BINARY", **tags):
    """A DICOM SEG of `mask` (slices, rows, columns[, segments]) over the sorted slices of a series."""
    images = sorted((pydicom.dcmread(p) for p in paths), key=lambda d: d.ImagePositionPatient[2])
    for item in images:
        for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
                        "ReferringPhysicianName"):  # fmt: skip
            if keyword not in item:
                setattr(item, keyword, "")
    count = mask.shape[3] if mask.ndim == 4 else int(mask.max())
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=k + 1,
            segment_label=f"organ {k + 1}",
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Lung,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for k in range(count)
    ]
    found = highdicom.seg.Segmentation(
        images, mask, kind, segments, highdicom.UID(), 1, highdicom.UID(), 1, "maker", "model", "1", "x"
    )
    files.put(found, tags)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path)


def _mask(values):
    mask = np.zeros(values.shape, np.uint8)
    mask[2:5, 3:7, 2:5] = 1
    mask[4:6, 8:12, 4:9] = 2
    return mask


def _convert(folder, root):
    """Convert in this process: the store's first volume, and (id, refusal) of all."""
    create_store(root)
    outcomes = []
    for source in files.sources_of(folder):
        made = [] if source.problem else convert_here(source, Settings(str(root), "keep", "auto"))
        outcomes += [(source.id, source.problem)] if source.problem else [(one.volume_id, one.refusal) for one in made]
    build_index(root)
    return open_store(root), outcomes


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("axes", [files.AXIAL, files.CORONAL])
def test_a_segmentation_becomes_the_label_of_its_series(tmp_path, kind, axes):
    values = files.body(7)
    paths = files.series(tmp_path / "ct", values, axes=axes, SeriesInstanceUID="1.2.1")
    files.series(tmp_path / "other", files.body(7, seed=1), axes=axes, SeriesInstanceUID="1.2.2")
    ordered = sorted(paths, key=lambda p: pydicom.dcmread(p).InstanceNumber)
    _segmentation(tmp_path / "seg", ordered, _mask(values), kind)
    labelled = [source for source in files.sources_of(tmp_path) if source.label is not None]
    assert [source.label.name for source in labelled] == ["seg"]
    assert labelled[0].classes == {0: "background", 1: "organ 1", 2: "organ 2"}
    scan = readers.read_series(labelled[0].paths)
    label = readers.read_segmentation(labelled[0].label, scan)
    np.testing.assert_array_equal(scan.data[0], values.transpose(2, 1, 0))
    np.testing.assert_array_equal(label.data[0], _mask(values).transpose(2, 1, 0))


def test_labels_reach_the_store(tmp_path):
    values = files.body(18, 20, 22)
    mask = np.zeros(values.shape, np.uint8)
    mask[9, 4:9, 5:11], mask[10, 12:15, 3:5] = 1, 3  # two slices of 18, two of three segments
    paths = files.series(tmp_path / "in" / "ct", values)
    _segmentation(tmp_path / "in" / "labels" / "x.dcm", paths, mask)
    store, outcomes = _convert(tmp_path / "in", tmp_path / "store")
    assert outcomes[0][1] is None and len(outcomes) == 1
    shape = tuple(store.shape(0)[1:])
    np.testing.assert_array_equal(store.read(0, (0, 0, 0), shape, kind="labels")[0], mask)
    assert store.label_info(0).classes == {0: "background", 1: "organ 1", 2: "organ 2", 3: "organ 3"}


def test_a_label_of_a_tilted_or_foreign_scan(tmp_path):
    values = files.body(7)
    paths = files.series(tmp_path / "ct", values)
    _segmentation(tmp_path / "seg", paths, _mask(values))
    scan = readers.read_series(paths)
    scan.affine[:3, 3] += [300, 0, 0]
    with pytest.raises(Refusal, match="label_affine_mismatch: 100%"):
        readers.read_segmentation(tmp_path / "seg", scan)


def test_a_segmentation_of_a_tilted_stack_is_refused(tmp_path):
    values = files.body(7)
    paths = files.series(tmp_path / "in", values, drift=(0.0, 0.4))
    _segmentation(tmp_path / "in" / "seg", paths, _mask(values))
    store, outcomes = _convert(tmp_path / "in", tmp_path / "store")
    assert [refusal and refusal.reason for _, refusal in outcomes] == [None, "label_unreadable"]
    assert {LABEL_REFUSED, "resampled_tilt"} <= set(store.attributes(0).flags)


def test_overlapping_segments_leave_the_scan_unlabelled(tmp_path):
    values = files.body(7, 20, 22)
    paths = files.series(tmp_path / "in", values)
    overlap = np.zeros((*values.shape, 2), np.uint8)
    overlap[2:5, 3:9, 3:9, 0] = overlap[3:6, 6:12, 6:12, 1] = 1
    _segmentation(tmp_path / "in" / "seg", paths, overlap)
    store, outcomes = _convert(tmp_path / "in", tmp_path / "store")
    assert [refusal and refusal.reason for _, refusal in outcomes] == [None, "label_overlap"]
    assert "without its DICOM SEG" in outcomes[1][1].detail
    assert LABEL_REFUSED in store.attributes(0).flags and not list((tmp_path / "store").glob("labels/h-*"))


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_a_mask_that_was_shipped_as_a_series_is_no_scan(tmp_path, modality):
    mask = np.zeros((20, 32, 30), np.int16)
    mask[5:15, 8:20, 6:22], mask[8:12, 10:14, 10:15] = 1, 2
    files.series(tmp_path / "in", mask - (1024 if modality == "CT" else 0), modality=modality)
    create_store(tmp_path / "store")
    (source,) = files.sources_of(tmp_path / "in")
    (outcome,) = convert_here(source, Settings(str(tmp_path / "store"), "keep", "auto"))
    assert outcome.refusal is not None and outcome.refusal.reason == "looks_like_labels"


def test_shares_are_no_classes(tmp_path):
    values = files.body(7, 20, 22)
    paths = files.series(tmp_path, values)
    shares = np.clip(_mask(values), 0, 1) * 0.5
    _segmentation(tmp_path / "seg", paths, shares[..., None], "FRACTIONAL")
    with pytest.raises(Refusal, match=r"label_not_integer|label_unreadable"):
        readers.read_segmentation(tmp_path / "seg", readers.read_series(paths))


def test_segmentations_that_fit_nothing_and_contours(tmp_path):
    values = files.body(7)
    paths = files.series(tmp_path / "a" / "ct", values)
    _segmentation(tmp_path / "a" / "one", paths, _mask(values))
    _segmentation(tmp_path / "a" / "two", paths, _mask(values))
    _segmentation(tmp_path / "alone" / "seg", paths, _mask(values))
    contours = files.blank(tmp_path / "a" / "rs", "1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT")
    contours.save_as(tmp_path / "a" / "rs", enforce_file_format=True)
    assert files.reasons(files.sources_of(tmp_path / "a")) == ["contours", "duplicate"]
    assert files.reasons(files.sources_of(tmp_path / "alone")) == ["label_without_image"]


def test_a_segmentation_that_names_no_series_goes_by_its_frame_of_reference(tmp_path):
    values = files.body(7)
    paths = files.series(tmp_path / "ct", values, SeriesInstanceUID="1.2.1")
    _segmentation(tmp_path / "seg", paths, _mask(values), ReferencedSeriesSequence=None)
    assert [source.label is not None for source in files.sources_of(tmp_path)] == [True]
    files.series(tmp_path / "more", files.body(7, seed=1), SeriesInstanceUID="1.2.2")  # now it could be either
    assert files.reasons(files.sources_of(tmp_path)) == ["label_without_image"]


@pytest.mark.slow
def test_a_whole_conversion_with_a_segmentation(tmp_path):
    values = files.body(18, 20, 22)
    mask = np.zeros(values.shape, np.uint8)
    mask[4:12, 4:16, 5:18] = 1
    paths = files.series(tmp_path / "in", values)
    _segmentation(tmp_path / "in" / "seg", paths, mask)
    report = convert(tmp_path / "in", tmp_path / "store", workers=1)
    assert (report.converted, report.refused) == (1, [])
    store = open_store(tmp_path / "store")
    label = store.read(0, (0, 0, 0), tuple(store.shape(0)[1:]), kind="labels")[0]
    volume_mm3 = mask.sum() * 2.0 * 0.8 * 1.2
    assert (label == 1).sum() == pytest.approx(volume_mm3, rel=0.05)
