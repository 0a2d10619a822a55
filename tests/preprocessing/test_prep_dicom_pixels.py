"""DICOM values: every compression, bits, rescale of each frame, padding, mosaics."""

import shutil

import dicom_prep as files
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from preprocessing import convert, readers, series
from preprocessing.readers import dicom
from preprocessing.refusal import Refusal
from preprocessing.source import Root
from preprocessing.subjects import Patients
from ssl3d.data.store import open_store


def _read(folder):
    return dicom.read_series(sorted(folder.iterdir()))


def _same(scan, values):
    np.testing.assert_array_equal(scan.data[0], values.transpose(2, 1, 0))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize(("bits", "signed"), [(16, True), (16, False), (12, False)])
def test_compressions_that_pydicom_writes(tmp_path, syntax, bits, signed):
    values = np.clip(files.body(5, 37, 43), -1000, 2000)
    for path in files.series(tmp_path, values):
        item = pydicom.dcmread(path)
        if not signed:
            item.PixelRepresentation = 0
        item.BitsStored, item.HighBit = bits, bits - 1
        item.compress(syntax)
        item.save_as(path)
    _same(_read(tmp_path), values)


def _by_gdcm(path, syntax):
    """Compress a file in place with GDCM; skips where it cannot."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    if not change.Change():
        pytest.skip(f"GDCM does not write {syntax.name}")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless])
@pytest.mark.parametrize("signed", [False, True])
def test_compressions_that_gdcm_writes(tmp_path, syntax, signed):
    values = np.clip(files.body(5, 37, 43), -1000, 2000)
    for path in files.series(tmp_path, values):
        item = pydicom.dcmread(path)
        item.PixelRepresentation = int(signed)
        item.BitsStored, item.HighBit = (16, 15) if signed else (12, 11)
        item.save_as(path)
        _by_gdcm(path, syntax)
    _same(_read(tmp_path), values)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_encodings_of_the_data_set(tmp_path, syntax):
    values = files.body(4)
    for path in files.series(tmp_path, values):
        item = pydicom.dcmread(path)
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        stored = item.pixel_array
        item.file_meta.TransferSyntaxUID = syntax
        if not little:
            item.PixelData = stored.astype(">i2").tobytes()
        pydicom.dcmwrite(path, item, implicit_vr=implicit, little_endian=little, force_encoding=True)
    _same(_read(tmp_path), values)


def test_a_decoder_for_every_compression_is_installed():
    from pydicom.pixels import get_decoder

    for syntax in (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless,
                   JPEGLSNearLossless, JPEG2000Lossless, HTJ2KLossless, HTJ2K, RLELossless):  # fmt: skip
        assert get_decoder(syntax).is_available, syntax.name


def test_frames_of_a_compressed_enhanced_object(tmp_path):
    values = np.random.default_rng(0).integers(0, 4000, (8, 39, 41)).astype(np.uint16)
    frames = [{"position": files.CORNER + [0, 0, 2.0 * (k % 4)], "time": k // 4 + 1} for k in range(8)]
    item = files.enhanced(tmp_path / "x", values, frames)
    item.compress(JPEG2000Lossless)
    item.save_as(tmp_path / "x")
    for time in range(2):
        scan = dicom.read_series([tmp_path / "x"], [tuple(range(4 * time, 4 * time + 4))])
        _same(scan, values[4 * time : 4 * time + 4].astype(int))


def test_pixels_that_end_early_are_truncated(tmp_path):
    paths = files.series(tmp_path / "raw", files.body(4))
    paths[2].write_bytes(paths[2].read_bytes()[:-60])
    with pytest.raises(Refusal, match="truncated"):
        _read(tmp_path / "raw")
    paths = files.series(tmp_path / "bare", files.body(4))
    item = pydicom.dcmread(paths[1])
    del item.PixelData
    item.save_as(paths[1])
    with pytest.raises(Refusal, match="truncated"):
        _read(tmp_path / "bare")


def test_a_damaged_codestream_is_refused_without_words_of_the_header(tmp_path):
    for path in files.series(tmp_path, files.body(4, 43, 41)):
        item = pydicom.dcmread(path)
        item.compress(JPEG2000Lossless)
        item.save_as(path)
        content = bytearray(path.read_bytes())
        content[-300:-100] = bytes(200)
        path.write_bytes(content)
    try:
        scan = _read(tmp_path)
    except Refusal as refusal:
        assert refusal.reason in ("truncated", "unreadable", "missing_decoder")
        assert "DOE" not in refusal.detail and str(tmp_path) not in refusal.detail
    else:  # JPEG 2000 has no checksum: what the codec restores is a picture of the right size
        assert scan.data.shape == (1, 41, 43, 4)


def test_an_unknown_compression_is_named(tmp_path):
    for path in files.series(tmp_path, files.body(4)):
        item = pydicom.dcmread(path)
        item.compress(RLELossless)
        item.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
        item.save_as(path)
    with pytest.raises(Refusal, match="missing_decoder: no decoder for MPEG2"):
        _read(tmp_path)


def _rewrite(folder, change):
    for path in folder.iterdir():
        item = pydicom.dcmread(path)
        change(item)
        item.save_as(path)


def test_bits_that_a_picture_does_not_use_are_cut(tmp_path):
    """12 of 16 bits, an old overlay in the four above, signed and unsigned."""
    values = np.clip(files.body(4), -1000, 1000)
    overlay = np.random.default_rng(1).integers(0, 16, (14, 10)).astype(np.uint16) << 12

    def signed(item):
        stored = item.pixel_array.astype(np.int16) - 1024
        item.RescaleIntercept = 0
        item.BitsStored, item.HighBit, item.PixelRepresentation = 12, 11, 1
        item.PixelData = ((stored.view(np.uint16) & 0x0FFF) | overlay).tobytes()

    def unsigned(item):
        item.BitsStored, item.HighBit, item.PixelRepresentation = 12, 11, 0
        item.PixelData = (item.pixel_array.astype(np.uint16) | overlay).tobytes()

    def left_aligned(item):
        item.BitsStored, item.HighBit, item.PixelRepresentation = 12, 15, 0
        item.PixelData = ((item.pixel_array.astype(np.uint16) << 4) | (overlay >> 12)).tobytes()

    for change in (signed, unsigned, left_aligned):
        folder = tmp_path / change.__name__
        files.series(folder, values)
        _rewrite(folder, change)
        _same(_read(folder), values)


def test_eight_and_thirty_two_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (4, 9, 8))

    def narrow(item):
        files.set_pixels(item, item.pixel_array.astype(np.uint8))

    def wide(item):
        files.set_pixels(item, item.pixel_array.astype(np.int32) * 100_000)

    for change, factor in ((narrow, 1), (wide, 100_000)):
        folder = tmp_path / change.__name__
        files.series(folder, values, modality="MR")
        _rewrite(folder, change)
        _same(_read(folder), values * factor)


def test_float_pixels(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 9, 8)).astype(np.float32)
    for k, path in enumerate(sorted(files.series(tmp_path, np.zeros((4, 9, 8)), modality="MR"),
                                    key=lambda p: pydicom.dcmread(p).InstanceNumber)):  # fmt: skip
        item = pydicom.dcmread(path)
        del item.PixelData, item.BitsStored, item.HighBit, item.PixelRepresentation
        item.BitsAllocated, item.FloatPixelData = 32, values[k].tobytes()
        item.save_as(path)
    _same(_read(tmp_path), values)


def test_slopes_of_each_slice_and_of_each_frame(tmp_path):
    values = files.body(6)
    slopes = [0.25, 0.5, 2.0, 0.125, 1.0, 3.7]
    stored = [np.rint((v + 1000) / s).astype(np.int16) for v, s in zip(values, slopes)]
    for k, slope in enumerate(slopes):
        files.slice_file(tmp_path / "classic" / f"{k}", stored[k], files.CORNER + [0, 0, 2.0 * k],
                         RescaleSlope=slope, RescaleIntercept=-1000)  # fmt: skip
    expected = np.array([s.astype(np.float64) * f - 1000 for s, f in zip(stored, slopes)])
    scan = _read(tmp_path / "classic")
    np.testing.assert_allclose(scan.data[0], expected.transpose(2, 1, 0), rtol=1e-6, atol=1e-4)
    frames = [{"position": files.CORNER + [0, 0, 2.0 * k], "slope": slope} for k, slope in enumerate(slopes)]
    files.enhanced(tmp_path / "enhanced", np.array(stored), frames)
    scan = dicom.read_series([tmp_path / "enhanced"])
    np.testing.assert_allclose(scan.data[0], expected.transpose(2, 1, 0) + 1000, rtol=1e-6, atol=1e-4)


def test_a_modality_lut_is_applied(tmp_path):
    values = np.random.default_rng(0).integers(0, 16, (4, 9, 8))
    table = (np.arange(16) ** 2).astype(np.uint16)

    def change(item):
        lut = pydicom.Dataset()
        lut.LUTDescriptor, lut.ModalityLUTType, lut.LUTData = [16, 0, 16], "US", table.tobytes()
        item.ModalityLUTSequence = [lut]
        item.PixelRepresentation = 0

    files.series(tmp_path, values, modality="MR")
    _rewrite(tmp_path, change)
    _same(_read(tmp_path), table[values])


@pytest.mark.parametrize("limit", [None, -3040])
@pytest.mark.parametrize("written", [-3024, 65536 - 3024])
def test_declared_padding_is_invalid_however_it_is_written(tmp_path, limit, written):
    values = files.body(5, 12, 10)
    values[:, :3] = -3024 - 1024
    values[:, :, 9] = -3040 - 1024 if limit is not None else values[:, :, 9]

    def change(item):
        signed = written < 0
        for keyword, value in (("PixelPaddingValue", written), ("PixelPaddingRangeLimit", limit)):
            if value is not None:
                tag = pydicom.tag.Tag(keyword)
                item[tag] = pydicom.DataElement(tag, "SS" if signed else "US", value if signed else value % 65536)

    files.series(tmp_path, values)
    _rewrite(tmp_path, change)
    scan = _read(tmp_path)
    padded = values <= -3024 - 1024
    np.testing.assert_array_equal(scan.invalid, padded.transpose(2, 1, 0))
    _same(scan, values)  # what was stored stays


@pytest.mark.slow
def test_declared_padding_reaches_the_store_for_mr_too(tmp_path):
    values = np.random.default_rng(0).integers(300, 900, (18, 20, 22))
    values[:, :5] = 7
    files.series(tmp_path / "s", values, modality="MR", PixelPaddingValue=7)
    convert(tmp_path / "s", tmp_path / "store", spacing="keep", workers=1)
    store = open_store(tmp_path / "store")
    shape = tuple(store.shape(0)[1:])
    np.testing.assert_array_equal(store.read(0, (0, 0, 0), shape, kind="valid")[0] != 0, values != 7)


def test_a_ct_that_does_not_say_how_to_get_hu(tmp_path):
    def bare(item):
        del item.RescaleSlope, item.RescaleIntercept

    files.series(tmp_path / "raw", files.body(4))
    _rewrite(tmp_path / "raw", bare)
    with pytest.raises(Refusal, match="bad_rescale"):
        _read(tmp_path / "raw")
    values = files.body(4)
    files.series(tmp_path / "hu", values - 1024)  # air is there: these are HU already
    _rewrite(tmp_path / "hu", bare)
    _same(_read(tmp_path / "hu"), values)


@pytest.mark.parametrize(("count", "sign"), [(9, 1), (7, 1), (5, -1)])
def test_a_mosaic_is_unpacked_to_slices_in_place(tmp_path, count, sign):
    values = np.random.default_rng(count).integers(0, 900, (count, 8, 10)).astype(np.int16)
    files.mosaic(tmp_path / "m", values, (0, 0, sign), 3.5)
    scan = dicom.read_series([tmp_path / "m"])
    ordered = values if sign > 0 else values[::-1]
    _same(scan, ordered.astype(int))
    low = files.CORNER + [0, 0, 0 if sign > 0 else -3.5 * (count - 1)]
    for c, r, k in ((0, 0, 0), (9, 7, count - 1)):
        lps = low + [files.SPACING[1] * c, files.SPACING[0] * r, 3.5 * k]
        np.testing.assert_allclose((scan.affine @ [c, r, k, 1])[:3], lps * [-1, -1, 1], atol=1e-4)
    shape, affine = dicom.series_geometry([tmp_path / "m"])
    assert shape == scan.data.shape[1:]
    np.testing.assert_allclose(affine, scan.affine)


def test_mosaics_of_one_series_are_time_points(tmp_path):
    values = np.random.default_rng(0).integers(0, 900, (4, 6, 8, 10)).astype(np.int16)
    for time in range(4):
        files.mosaic(tmp_path / f"m{3 - time}", values[time], (0, 0, 1), 3.5, InstanceNumber=time + 1)
    found = {path: Root(tmp_path, "s") for path in sorted(tmp_path.iterdir())}
    sources = series.group(found, b"k" * 32, Patients())
    assert [source.id[-6:] for source in sources] == [f"_t{k:04d}" for k in range(4)]
    for source, expected in zip(sources, values):
        _same(readers.read_series(source.paths, source.selection), expected.astype(int))


def test_a_mosaic_without_its_count_is_refused(tmp_path):
    item = files.mosaic(tmp_path / "m", np.ones((4, 8, 10), np.int16), (0, 0, 1), 3.5)
    block = item.private_block(0x0029, "SIEMENS CSA HEADER")
    none, far_too_many = files.csa(SliceNormalVector=[0, 0, 1]), files.csa(NumberOfImagesInMosaic=[90_000])
    for content in (none, far_too_many, b"SV10garbage" * 9):
        block[0x10].value = content
        item.save_as(tmp_path / "m")
        with pytest.raises(Refusal, match="mosaic"):
            dicom.read_series([tmp_path / "m"])


def test_reading_holds_no_whole_file_for_a_few_frames(tmp_path, monkeypatch):
    values = np.zeros((150, 32, 32), np.uint16)
    values[:] = np.arange(150)[:, None, None]
    values[:, ::2] += 1
    frames = [{"position": files.CORNER + [0, 0, 2.0 * (k % 3)], "time": k // 3 + 1} for k in range(150)]
    files.enhanced(tmp_path / "x", values, frames)
    calls = []
    original = readers.dicom.read_file.__globals__["_values"]
    monkeypatch.setitem(readers.dicom.read_file.__globals__, "_values", lambda *a: calls.append(1) or original(*a))
    scan = dicom.read_series([tmp_path / "x"], [(147, 148, 149)])
    assert len(calls) == 3
    _same(scan, values[147:].astype(int))


def test_pet_stays_pet(tmp_path):
    for path in files.series(tmp_path / "s", files.body(6), modality="MR"):
        item = pydicom.dcmread(path)
        item.Modality, item.SOPClassUID = "PT", "1.2.840.10008.5.1.4.1.1.128"
        item.save_as(path)
    assert _read(tmp_path / "s").modality == ["pet"]
    shutil.rmtree(tmp_path / "s")
