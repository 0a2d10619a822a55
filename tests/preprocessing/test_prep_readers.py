"""Readers against the libraries that wrote the files: ITK for NRRD and MetaImage, nibabel for the others."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from tests_prep import oblique, smooth

from preprocessing import readers
from preprocessing.readers import minc
from preprocessing.refusal import Refusal

_MINC = Path(nib.__file__).parent / "tests" / "data"
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def _itk(values, affine):
    """An ITK image of (x, y, z) values at a RAS+ affine."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
    lps = _FLIP @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def _one(path):
    header = readers.header(path)
    (scan,) = readers.read(path)
    assert header.shape == scan.data.shape[1:] and header.frames == 1
    np.testing.assert_array_equal(header.affine, scan.affine)
    return scan


@pytest.mark.parametrize("extension", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float32, np.float64])
def test_what_itk_writes_is_read_as_itk_reads_it(tmp_path, extension, compressed, dtype):
    values = (smooth((9, 8, 7), sigma=1.0) / 4).astype(dtype)
    affine = oblique((0.8, 1.3, 2.6), 25)
    path = tmp_path / f"scan{extension}"
    sitk.WriteImage(_itk(values, affine), str(path), compressed)
    scan = _one(path)
    np.testing.assert_array_equal(scan.data[0], values.astype(scan.data.dtype))
    np.testing.assert_allclose(scan.affine, affine, atol=1e-6)
    if dtype in (np.uint8, np.int16, np.uint32):
        assert scan.data.dtype == dtype


@pytest.mark.parametrize("extension", [".mha", ".nrrd"])
def test_a_fourth_axis_of_itk_is_time_frames(tmp_path, extension):
    frames = [(smooth((9, 8, 7), k)).astype(np.int16) for k in range(3)]
    affine = oblique((0.8, 1.3, 2.6), 25)
    joined = sitk.JoinSeries([_itk(frame, affine) for frame in frames])
    sitk.WriteImage(joined, str(tmp_path / f"scan{extension}"))
    try:
        header = readers.header(tmp_path / f"scan{extension}")
    except Refusal as refusal:  # NRRD of ITK puts all four axes into one space, which has no place for a patient
        assert extension == ".nrrd" and refusal.reason in ("no_orientation", "unsupported_dimensions")
        return
    assert header.frames == 3
    for number, scan in enumerate(readers.read(tmp_path / f"scan{extension}", [0, 2])):
        np.testing.assert_array_equal(scan.data[0], frames[2 * number])
        np.testing.assert_allclose(scan.affine, affine, atol=1e-6)


def test_colour_of_itk_is_refused(tmp_path):
    colour = sitk.GetImageFromArray(np.zeros((5, 6, 7, 3), np.uint8), isVector=True)
    for extension, reason in ((".mha", "colour"), (".nrrd", "colour|vector_voxels")):
        sitk.WriteImage(colour, str(tmp_path / f"scan{extension}"))
        with pytest.raises(Refusal, match=reason):
            readers.header(tmp_path / f"scan{extension}")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair, nib.MGHImage])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("packed", [False, True])
def test_what_nibabel_writes_is_read_as_nibabel_reads_it(tmp_path, kind, dtype, packed):
    values = (smooth((9, 8, 7), sigma=1.0) / 4).astype(dtype)
    name = {nib.Nifti1Pair: "scan.img", nib.MGHImage: "scan.mgz" if packed else "scan.mgh"}.get(kind, "scan.nii")
    path = tmp_path / (name + (".gz" if packed and "mg" not in name[-3:-1] else ""))
    if kind is nib.Nifti1Pair and packed:
        pytest.skip("nibabel writes compressed pairs as .img.gz with .hdr.gz: tested in the next test")
    nib.save(kind(values, oblique((0.8, 1.3, 2.6), 25)), path)
    expected = nib.load(path)
    scan = _one(readers.header_file(path))
    np.testing.assert_array_equal(scan.data[0], np.asanyarray(expected.dataobj))
    np.testing.assert_allclose(scan.affine, expected.affine, atol=1e-6)
    assert scan.data.dtype == dtype and scan.flags == []


def test_a_compressed_pair(tmp_path):
    values = smooth((9, 8, 7)).astype(np.int16)
    nib.save(nib.Nifti1Pair(values, np.diag([1.0, 2, 3, 1])), tmp_path / "scan.img.gz")
    assert readers.header_file(tmp_path / "scan.img.gz") == tmp_path / "scan.hdr.gz"
    np.testing.assert_array_equal(_one(tmp_path / "scan.hdr.gz").data[0], values)


def test_frames_are_read_in_turn_from_plain_and_compressed_files(tmp_path):
    values = np.stack([smooth((9, 8, 7), k) for k in range(4)], -1)
    for name in ("scan.nii", "scan.nii.gz", "scan.mgz"):
        kind = nib.MGHImage if name.endswith("mgz") else nib.Nifti1Image
        nib.save(kind(values, np.diag([1.0, 2, 3, 1])), tmp_path / name)
        assert readers.header(tmp_path / name).frames == 4
        read = [scan.data[0] for scan in readers.read(tmp_path / name, [1, 3])]
        np.testing.assert_array_equal(np.stack(read, -1), values[..., [1, 3]])


def test_whole_numbers_stay_whole_and_wide_floats_stay_right(tmp_path):
    whole = np.arange(504).reshape(9, 8, 7).astype(np.int64) + (1 << 40)
    nib.save(nib.Nifti1Image(whole, np.eye(4), dtype=np.int64), tmp_path / "whole.nii")
    assert _one(tmp_path / "whole.nii").data.dtype == np.int64
    np.testing.assert_array_equal(_one(tmp_path / "whole.nii").data[0], whole)
    wide = whole.astype(np.float64) + 0.25
    nib.save(nib.Nifti1Image(wide, np.eye(4)), tmp_path / "wide.nii")
    np.testing.assert_array_equal(_one(tmp_path / "wide.nii").data[0], wide)
    nib.save(nib.Nifti1Image(smooth((9, 8, 7)).astype(np.float64), np.eye(4)), tmp_path / "usual.nii")
    assert _one(tmp_path / "usual.nii").data.dtype == np.float32


@pytest.mark.skipif(not _MINC.is_dir(), reason="nibabel is installed without its test data")
@pytest.mark.parametrize("name", ["tiny.mnc", "minc1_1_scale.mnc", "small.mnc", "minc2_1_scale.mnc"])
def test_minc_is_read_as_nibabel_reads_it(name):
    if minc.is_hdf5(_MINC / name):
        pytest.importorskip("h5py")
    expected = nib.load(_MINC / name)
    scan = _one(_MINC / name)
    np.testing.assert_allclose(scan.data[0], np.asarray(expected.dataobj), rtol=1e-6)
    np.testing.assert_array_equal(scan.affine, expected.affine)


@pytest.mark.skipif(not _MINC.is_dir(), reason="nibabel is installed without its test data")
def test_minc_of_four_dimensions_and_cut_short_is_refused(tmp_path):
    with pytest.raises(Refusal, match="unsupported_dimensions"):
        readers.header(_MINC / "minc1_4d.mnc")
    pytest.importorskip("h5py")
    content = (_MINC / "small.mnc").read_bytes()
    for end in (600, len(content) // 2, len(content) - 50):
        (tmp_path / "cut.mnc").write_bytes(content[:end])
        with pytest.raises(Refusal, match=r"truncated|unreadable"):
            readers.header(tmp_path / "cut.mnc")


@pytest.mark.skipif(not _MINC.is_dir(), reason="nibabel is installed without its test data")
def test_minc_2_without_its_library_names_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(Refusal, match=r"missing_library.*ssl3d\[minc\]"):
        list(readers.read(_MINC / "small.mnc"))
