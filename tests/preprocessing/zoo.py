"""Small files that lie, and small files that look odd and are right; each built from scratch, each with its verdict.

`REFUSED`: {file name: Hostile}; `KEPT`: {file name: Odd}. No two hold the same anatomy, so none is another's duplicate.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from scipy.io import netcdf_file
from tests_prep import oblique, smooth

SHAPE = (12, 11, 10)
SPACING = (0.9, 1.3, 2.2)
# where NIfTI-1 keeps its fields, in bytes
SIZEOF_HDR, DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, INTER, UNITS = 0, 40, 70, 76, 108, 112, 116, 123
QFORM_CODE, SFORM_CODE, QUATERN, SROW, MAGIC = 252, 254, 256, 280, 344


@dataclass
class Hostile:
    """`content` of a file (or, by name, of several) and the reason that it is refused for."""

    content: bytes
    reason: str
    others: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Odd:
    """`content`, the voxels (x, y, z) and the affine that it must become, and the flags it must carry."""

    content: bytes
    voxels: np.ndarray
    affine: np.ndarray
    flags: tuple[str, ...] = ()
    others: dict[str, bytes] = field(default_factory=dict)


REFUSED: dict[str, Hostile] = {}
KEPT: dict[str, Odd] = {}
AFFINE = oblique(SPACING, 15.0)
_seed = 0


def anatomy(dtype=np.int16, shape=SHAPE) -> np.ndarray:
    """Another one on each call."""
    global _seed
    _seed += 1
    return smooth(shape, seed=_seed, sigma=1.5).astype(dtype)


def nifti(array, affine=AFFINE, kind=nib.Nifti1Image, *patches) -> bytes:
    """A file's bytes; `patches`: (offset, struct format, values...)."""
    content = bytearray(kind(array, affine).to_bytes())
    for at, layout, *values in patches:
        struct.pack_into(layout, content, at, *values)
    return bytes(content)


def patched(*patches, array=None, affine=AFFINE) -> bytes:
    """A NIfTI-1 file with some bytes of its header overwritten."""
    return nifti(anatomy() if array is None else array, affine, nib.Nifti1Image, *patches)


def pack(content: bytes) -> bytes:
    """As gzip, the same bytes every time."""
    return gzip.compress(content, 6, mtime=0)


def flip(content: bytes, at: int) -> bytes:
    """One byte turned over."""
    broken = bytearray(content)
    broken[at] ^= 0x41
    return bytes(broken)


def mgh(array, affine=AFFINE) -> bytes:
    """MGH bytes (nibabel writes them, tags and all)."""
    return nib.MGHImage(array, affine).to_bytes()


def nrrd(array, affine=AFFINE, encoding="raw", data_file="", **changed) -> bytes:
    """An NRRD file in LPS; a changed field of None is left out. Without the voxels when they are in a `data_file`."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    kind = {"i2": "short", "u1": "uchar", "f4": "float", "f8": "double", "i4": "int"}[array.dtype.str[1:]]
    fields = {
        "type": kind,
        "dimension": array.ndim,
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, array.shape)),
        "space directions": " ".join("({:.17g},{:.17g},{:.17g})".format(*column) for column in lps[:3, :3].T),
        "kinds": "domain domain domain",
        "endian": "big" if array.dtype.str[0] == ">" else "little",
        "encoding": encoding,
        "space origin": "({:.17g},{:.17g},{:.17g})".format(*lps[:3, 3]),
    } | {name.replace("_", " "): value for name, value in changed.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    raw = array.tobytes(order="F")
    if data_file:
        return "\n".join(["NRRD0004", *lines, f"data file: {data_file}", ""]).encode()
    return "\n".join(["NRRD0004", *lines, "", ""]).encode() + (raw if encoding != "gzip" else pack(raw))


def meta(array, affine=AFFINE, compressed=False, data_file="LOCAL", **changed) -> bytes:
    """A MetaImage file; a changed field of None is left out."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    kind = {"i2": "MET_SHORT", "u1": "MET_UCHAR", "f4": "MET_FLOAT", "f8": "MET_DOUBLE"}[array.dtype.str[1:]]
    raw = array.tobytes(order="F")
    stored = zlib.compress(raw) if compressed else raw
    fields = {
        "ObjectType": "Image",
        "NDims": array.ndim,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": array.dtype.str[0] == ">",
        "CompressedData": compressed,
        "TransformMatrix": " ".join(f"{v:.17g}" for v in (lps[:3, :3] / spacing).T.ravel()),
        "Offset": " ".join(f"{v:.17g}" for v in lps[:3, 3]),
        "ElementSpacing": " ".join(f"{v:.17g}" for v in spacing),
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": kind,
    } | changed
    lines = [f"{name} = {value}" for name, value in fields.items() if value is not None]
    return "\n".join([*lines, f"ElementDataFile = {data_file}", ""]).encode() + (
        stored if data_file == "LOCAL" else b""
    )


def minc(array, spacing=SPACING) -> bytes:
    """MINC 1 as netCDF, axes (z, y, x) upright; its affine is that of `minc_affine`."""
    buffer = io.BytesIO()
    with netcdf_file(buffer, "w") as file:
        for name, n, step in zip(("zspace", "yspace", "xspace"), array.shape, spacing[::-1]):
            file.createDimension(name, n)
            variable = file.createVariable(name, "i4", ())
            variable.step, variable.start, variable.spacing = float(step), -5.0, b"regular__"
        image = file.createVariable("image", "i2", ("zspace", "yspace", "xspace"))
        image[:] = array
        image.valid_range = np.array([array.min(), array.max()], "f8")
        image.signtype = b"signed__"
        for name, value in (("image-min", array.min()), ("image-max", array.max())):
            variable = file.createVariable(name, "f8", ())
            variable.data[...] = value
        file.flush()
        return buffer.getvalue()


def minc_affine(spacing=SPACING) -> np.ndarray:
    """(z, y, x, 1) -> world of `minc`."""
    affine = np.zeros((4, 4))
    for axis, step in enumerate(spacing[::-1]):
        affine[2 - axis, axis] = step
    affine[:, 3] = (-5.0, -5.0, -5.0, 1.0)
    return affine


def _refuse(name: str, reason: str, content: bytes, **others: bytes) -> None:
    assert name not in REFUSED
    REFUSED[name] = Hostile(content, reason, others)


def _keep(name: str, content: bytes, voxels, affine=AFFINE, flags=(), others=None) -> None:
    assert name not in KEPT
    KEPT[name] = Odd(content, voxels, np.asarray(affine, dtype=float), tuple(flags), others or {})


def _impostors() -> None:
    _refuse("empty.nii.gz", "empty_file", b"")
    _refuse("blank.nii.gz", "blank_file", bytes(4096))
    _refuse("blank_packed.nii.gz", "blank_file", pack(bytes(4096)))
    _refuse(
        "lfs.nii.gz", "git_lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    )
    _refuse("annex.nii.gz", "git_annex_pointer", b"/annex/objects/MD5E-s1234--0123456789abcdef.nii.gz\n")
    _refuse("login.nii.gz", "web_page", b"<!DOCTYPE html>\n<html><body>Please log in</body></html>")
    _refuse("denied.mha", "web_page", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')
    _refuse("login_packed.nii.gz", "web_page", pack(b"  <html><body>404</body></html>"))
    _refuse("reply.nii.gz", "json_reply", json.dumps({"message": "Not Found", "status": 404}).encode())
    _refuse("reply.nrrd", "json_reply", b'[{"error": "quota"}]')
    _refuse("note.nii", "plain_text", b"Access to this scan has to be asked for.\n" * 20)
    _refuse("archive.nii.gz", "wrong_format", b"PK\x03\x04" + bytes(range(256)) * 4)
    _refuse("picture.nii", "wrong_format", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4)
    _refuse("dicom.nii", "wrong_format", bytes(128) + b"DICM" + bytes(range(256)) * 4)
    _refuse("twice.nii.gz", "wrong_format", pack(pack(patched())))
    _refuse("nrrd.nii", "wrong_format", nrrd(anatomy()))
    _refuse("mha.nrrd", "wrong_format", meta(anatomy()))
    _refuse("mgh.mha", "unreadable", mgh(anatomy()))
    _refuse("random.nii", "unreadable", np.random.default_rng(0).integers(128, 256, 4000, np.uint8).tobytes())


def _damaged_streams() -> None:
    whole = pack(patched())
    _refuse("half.nii.gz", "truncated", whole[: len(whole) // 2])
    _refuse("no_end.nii.gz", "truncated", whole[:-9])
    _refuse("header_only.nii.gz", "truncated", whole[:40])
    _refuse("crc.nii.gz", "bad_checksum", flip(whole, len(whole) - 6))
    _refuse("length.nii.gz", "bad_checksum", flip(whole, len(whole) - 2))
    stored = gzip.compress(patched(), 0, mtime=0)  # not compressed: a flipped voxel is seen by the checksum only
    _refuse("voxel.nii.gz", "bad_checksum", flip(stored, len(stored) // 2))
    _refuse("method.nii.gz", "corrupt_stream", flip(whole, 2))
    _refuse("more.nii.gz", "surplus_bytes", whole + b"more")
    _refuse("half.nii", "truncated", patched()[:-700])
    _refuse("tiny.nii", "truncated", patched()[:200])
    _refuse("half_4d.nii.gz", "truncated", pack(nifti(np.stack([anatomy()] * 3, -1)))[:-400])
    _refuse("crc_4d.nii.gz", "bad_checksum", flip(pack(nifti(np.stack([anatomy()] * 3, -1))), -6))
    packed = pack(mgh(anatomy()))
    _refuse("half.mgz", "truncated", packed[: len(packed) // 2])
    _refuse("crc.mgz", "bad_checksum", flip(packed, len(packed) - 6))
    _refuse("half.mgh", "truncated", mgh(anatomy())[:-900])
    zipped = nrrd(anatomy(), encoding="gzip")
    _refuse("half.nrrd", "truncated", zipped[:-300])
    _refuse("crc.nrrd", "bad_checksum", flip(zipped, len(zipped) - 6))
    _refuse("raw_half.nrrd", "truncated", nrrd(anatomy())[:-300])
    deflated = meta(anatomy(), compressed=True)
    _refuse("half.mha", "truncated", deflated[:-300])
    _refuse("adler.mha", "bad_checksum", flip(deflated, len(deflated) - 2))
    _refuse("raw_half.mha", "truncated", meta(anatomy())[:-300])
    _refuse("raw_more.mha", "surplus_bytes", meta(anatomy()) + bytes(9000))


def _impossible_headers() -> None:
    _refuse("huge.nii", "impossible_size", patched((DIM, "<4h", 3, 30000, 30000, 30000)))
    _refuse("huge.nii.gz", "impossible_size", pack(patched((DIM, "<4h", 3, 30000, 30000, 30000))))
    _refuse(
        "smaller.nii", "surplus_bytes", nifti(anatomy(shape=(40, 40, 9)), AFFINE, nib.Nifti1Image, (DIM, "<2h", 3, 12))
    )
    _refuse("no_voxels.nii", "bad_dimensions", patched((DIM, "<4h", 3, 12, 0, 10)))
    _refuse("negative.nii", "bad_dimensions", patched((DIM, "<4h", 3, 12, -11, 10)))
    _refuse("nine.nii", "bad_dimensions", patched((DIM, "<h", 9)))
    _refuse("half_swapped.nii", "byte_order", patched((DIM, ">4h", 3, *SHAPE)))
    swapped = anatomy(np.int16).byteswap()
    _refuse("swapped_voxels.nii", "byte_order", patched(array=swapped))
    _refuse("swapped_floats.nii", "byte_order", patched(array=anatomy(np.float32).byteswap()))
    five = nib.Nifti1Image(np.stack([np.stack([anatomy()] * 2, -1)] * 2, -1), AFFINE)
    _refuse("five_axes.nii.gz", "unsupported_dimensions", pack(five.to_bytes()))
    _refuse("flat.nii", "too_few_slices", nifti(anatomy()[:, :, 0]))
    _refuse("two_slices.nii", "too_few_slices", nifti(anatomy()[:, :, :2]))
    _refuse("complex.nii", "complex", nifti(anatomy(np.complex64)))
    colour = np.zeros(SHAPE, [(c, "u1") for c in "RGB"])
    _refuse("rgb.nii", "colour", nifti(colour))
    _refuse("rgba.nii.gz", "colour", pack(nifti(np.zeros(SHAPE, [(c, "u1") for c in "RGBA"]))))
    _refuse("type_999.nii", "unsupported_type", patched((DATATYPE, "<h", 999)))
    _refuse("type_bits.nii", "unsupported_type", patched((DATATYPE, "<h", 1)))
    _refuse("type_quad.nii", "unsupported_type", patched((DATATYPE, "<h", 1536)))
    _refuse("offset.nii", "bad_offset", patched((VOX_OFFSET, "<f", -16.0)))
    _refuse("offset_nan.nii", "bad_offset", patched((VOX_OFFSET, "<f", np.nan)))
    _refuse("offset_inside.nii", "bad_offset", patched((VOX_OFFSET, "<f", 100.0)))
    _refuse("offset_beyond.nii", "impossible_size", patched((VOX_OFFSET, "<f", 2.0**30)))
    _refuse("slope_inf.nii", "bad_scaling", patched((SLOPE, "<2f", np.inf, 0.0)))
    _refuse("inter_nan.nii", "bad_scaling", patched((SLOPE, "<2f", 2.0, np.nan)))
    _refuse("own_size.nii", "corrupt_header", patched((SIZEOF_HDR, "<i", 349)))
    _refuse("no_magic.nii", "analyze", patched((MAGIC, "<4s", b"")))
    analyze = nib.Spm99AnalyzeImage(anatomy(), np.eye(4)).file_map
    for part in analyze.values():
        part.fileobj = io.BytesIO()
    nib.Spm99AnalyzeImage(anatomy(), np.diag([1.0, 1, 2, 1])).to_file_map(analyze)
    voxels = analyze["image"].fileobj.getvalue()
    REFUSED["analyze.hdr"] = Hostile(analyze["header"].fileobj.getvalue(), "analyze", {"analyze.img": voxels})
    _refuse("alone.img", "missing_header", voxels)
    _refuse("alone_too.hdr", "missing_data", patched((MAGIC, "<4s", b"ni1\0"), (VOX_OFFSET, "<f", 0.0))[:348])
    _refuse("single.hdr", "wrong_format", patched())
    _refuse("type_9.mgh", "unsupported_type", flip(mgh(anatomy()), 23))
    _refuse("dims.mgh", "bad_dimensions", _patch(mgh(anatomy()), (4, ">4i", 12, -11, 10, 1)))


def _patch(content: bytes, *patches) -> bytes:
    changed = bytearray(content)
    for at, layout, *values in patches:
        struct.pack_into(layout, changed, at, *values)
    return bytes(changed)


def _placeless() -> None:
    nowhere = ((SFORM_CODE, "<h", 0), (QFORM_CODE, "<h", 0))
    by_qform = ((SFORM_CODE, "<h", 0), (QFORM_CODE, "<h", 1))
    _refuse("nowhere.nii", "no_orientation", patched(*nowhere))
    _refuse("singular.nii", "affine_singular", patched((SROW, "<4f", 0, 0, 0, 0)))
    _refuse("sform_nan.nii", "affine_not_finite", patched((SROW, "<f", np.nan)))
    _refuse(
        "neither.nii",
        "affine_singular",
        patched((SROW, "<12f", *[0] * 12), (QFORM_CODE, "<h", 1), (PIXDIM + 4, "<f", 0)),
    )
    for name, size in (("zero", 0.0), ("minus", -1.0), ("nan", np.nan), ("inf", np.inf)):
        _refuse(f"size_{name}.nii", "bad_spacing", patched(*by_qform, (PIXDIM + 8, "<f", size)))
    _refuse("quaternion.nii", "affine_not_finite", patched(*by_qform, (QUATERN, "<3f", 3.0, 3.0, 3.0)))
    _refuse("far.nii", "implausible_spacing", nifti(anatomy(), np.diag([1.0, 1, 60, 1])))
    _refuse("near.nii", "implausible_spacing", nifti(anatomy(), np.diag([0.001, 1, 1, 1])))
    _refuse("lost.nii", "implausible_position", patched((SROW + 12, "<f", 1e30)))
    _refuse("unplaced.mgh", "no_orientation", _patch(mgh(anatomy()), (28, ">h", 0)))
    _refuse("sizeless.mgh", "bad_spacing", _patch(mgh(anatomy()), (30, ">f", 0.0)))
    _refuse("unplaced.nrrd", "no_orientation", nrrd(anatomy(), space=None))
    _refuse("undirected.nrrd", "no_orientation", nrrd(anatomy(), space_directions=None))
    _refuse("nan.nrrd", "affine_not_finite", nrrd(anatomy(), space_origin="(nan,0,0)"))
    _refuse("unplaced.mha", "no_orientation", meta(anatomy(), TransformMatrix=None))
    _refuse("sizeless.mha", "bad_spacing", meta(anatomy(), ElementSpacing="1 0 1"))
    _refuse("unsized.mha", "bad_spacing", meta(anatomy(), ElementSpacing=None))
    _refuse("singular.mha", "affine_singular", meta(anatomy(), TransformMatrix="1 0 0 1 0 0 0 0 1"))


def _text_headers() -> None:
    away = "../zoo_secret.raw"
    _refuse("away.nhdr", "outside_folder", nrrd(anatomy(), data_file=away))
    _refuse("root.mhd", "outside_folder", meta(anatomy(), data_file="/dev/zero"))
    _refuse("gone.nhdr", "missing_data", nrrd(anatomy(), data_file="gone.raw"))
    _refuse("gone.mhd", "missing_data", meta(anatomy(), data_file="gone.raw"))
    _refuse("pattern.mhd", "corrupt_header", meta(anatomy(), data_file="slice%03d.raw 1 0 1"))
    _refuse("ascii.nrrd", "unsupported_encoding", nrrd(anatomy(), encoding="ascii"))
    _refuse("text.mha", "unsupported_encoding", meta(anatomy(), BinaryData="False"))
    _refuse("block.nrrd", "unsupported_type", nrrd(anatomy(), type="block"))
    _refuse("type.mha", "unsupported_type", meta(anatomy(), ElementType="MET_OTHER"))
    _refuse("no_order.nrrd", "corrupt_header", nrrd(anatomy(), endian=None))
    _refuse("sizes.nrrd", "bad_dimensions", nrrd(anatomy(), sizes="12 11"))
    _refuse("minus.nrrd", "bad_dimensions", nrrd(anatomy(), sizes="12 -11 10"))
    _refuse("sizes.mha", "bad_dimensions", meta(anatomy(), DimSize="12 eleven 10"))
    _refuse("matrix.mha", "corrupt_header", meta(anatomy(), TransformMatrix="1 0 0"))
    _refuse("components.mha", "vector_voxels", meta(anatomy(), ElementNumberOfChannels=2))
    _refuse("colour.mha", "colour", meta(anatomy(np.uint8), ElementNumberOfChannels=3))
    four = np.stack([anatomy(np.uint8)] * 3)
    directions = "none (1,0,0) (0,1,0) (0,0,1)"
    for name, kind, reason in (
        ("rgb", "RGB-color", "colour"), ("complex", "complex", "complex"), ("vector", "vector", "vector_voxels"),
    ):  # fmt: skip
        content = nrrd(four, kinds=f"{kind} domain domain domain", space_directions=directions)
        _refuse(f"{name}.nrrd", reason, content)
    _refuse("flat.mha", "too_few_slices", b"ObjectType = Image\nNDims = 2\nDimSize = 4 4\nElementDataFile = LOCAL\n")
    _refuse("endless.mha", "truncated", b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\n")
    _refuse("endless.nrrd", "truncated", b"NRRD0004\ntype: short\ndimension: 3")
    _refuse("hdf5.mnc", "missing_library", b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 8)
    _refuse("noise.mnc", "unreadable", np.random.default_rng(1).integers(128, 256, 4000, np.uint8).tobytes())
    _refuse("half.mnc", "truncated", minc(anatomy())[:-1500])


def _values() -> None:
    _refuse("zeros.nii.gz", "all_zero", pack(nifti(np.zeros(SHAPE, np.int16))))
    _refuse("constant.nii", "constant", nifti(np.full(SHAPE, 7, np.int16)))
    _refuse("nan.nii", "not_finite", nifti(np.full(SHAPE, np.nan, np.float32)))
    mostly = anatomy(np.float32)
    mostly[:8] = np.nan
    _refuse("mostly_nan.nii", "mostly_not_finite", nifti(mostly))
    absurd = anatomy(np.float32)
    absurd[4, 5, 6] = 1e36
    _refuse("absurd.nii", "implausible_values", nifti(absurd))
    _refuse("absurd.nrrd", "implausible_values", nrrd(absurd * 1.5))
    hot = anatomy(np.float32)
    hot[4, 5, 6] = 4e9
    _refuse("hot.nii", "implausible_values", nifti(hot))
    double = anatomy(np.float64)
    double[4, 5, 6] = 1e300
    _refuse("beyond_float.nii", "implausible_values", nifti(double))
    _refuse("slope_absurd.nii", "implausible_values", patched((SLOPE, "<2f", 1e30, 0.0)))
    _refuse("underflow.nii", "implausible_values", nifti(anatomy(np.float32) * np.float32(1e-38)))
    _refuse("mask.nii", "looks_like_labels", nifti((anatomy() > 500).astype(np.uint8)))


def _odd_and_right() -> None:
    array = anatomy()
    _keep("plain_named_gz.nii.gz", nifti(array), array, flags=["misnamed"])
    array = anatomy()
    _keep("gz_named_plain.nii", pack(nifti(array)), array, flags=["misnamed"])
    array = anatomy()
    content = nifti(array)
    _keep("members.nii.gz", pack(content[:900]) + pack(content[900:]) + bytes(512), array)
    array = anatomy()
    _keep("padded.nii", nifti(array) + bytes(160), array, flags=["trailing_bytes"])
    array = anatomy(">i2")
    image = nib.Nifti1Image(array, AFFINE, nib.Nifti1Header(endianness=">"))
    _keep("big_endian.nii.gz", pack(image.to_bytes()), array)
    array = anatomy(np.float32)
    _keep("second.nii.gz", pack(nifti(array, AFFINE, nib.Nifti2Image)), array)
    array = anatomy()
    pair = nib.Nifti1Pair(array, AFFINE)
    files = {name: nib.FileHolder(fileobj=io.BytesIO()) for name in ("header", "image")}
    pair.to_file_map(files)
    _keep("pair.hdr", files["header"].fileobj.getvalue(), array, others={"pair.img": files["image"].fileobj.getvalue()})
    array = anatomy()
    image = nib.Nifti1Image(array, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"more" * 30))
    _keep("extension.nii", image.to_bytes(), array)
    array = anatomy()
    _keep("offset_zero.nii", patched((VOX_OFFSET, "<f", 0.0), array=array), array)
    array = anatomy(np.uint8)
    _keep("slope_zero.nii", patched((SLOPE, "<2f", 0.0, -1024.0), array=array), array)
    array = anatomy(np.uint8)
    _keep("slope_nan.nii", patched((SLOPE, "<2f", np.nan, 0.0), array=array), array)
    array = anatomy()
    _keep("scaled.nii", patched((SLOPE, "<2f", 0.5, -1024.0), array=array), array * 0.5 - 1024)


def _odd_places() -> None:
    array = anatomy()
    image = nib.Nifti1Image(array, AFFINE)
    image.set_qform(AFFINE, 1)
    singular = _patch(image.to_bytes(), (SROW, "<12f", *[0.0] * 12))
    _keep("sform_singular.nii", singular, array, image.get_qform(), ["qform_used"])
    array = anatomy()
    only = nib.Nifti1Image(array, AFFINE)
    only.set_qform(AFFINE, 1)
    only.set_sform(None, 0)
    _keep("qform_only.nii", only.to_bytes(), array, only.get_qform(), ["qform_used"])
    array = anatomy()
    image = nib.Nifti1Image(array, AFFINE)
    image.set_qform(np.diag([-1.0, -1, 1, 1]) @ AFFINE, 1)
    _keep("disagree.nii", image.to_bytes(), array, flags=["qform_differs"])
    array = anatomy()
    _keep("pixdim_zero.nii", patched((PIXDIM + 4, "<3f", 0.0, 0.0, 0.0), array=array), array, flags=["pixdim_differs"])
    for name, code, factor in (("metres", 1, 1e-3), ("micrometres", 3, 1e3)):
        array = anatomy()
        small = AFFINE.copy()
        small[:3] *= factor
        content = _patch(nifti(array, small), (UNITS, "<b", code))
        _keep(f"{name}.nii", content, array)


def _odd_values() -> None:
    some = anatomy(np.float32)
    some[2:5, 3:6, 4:6] = np.nan
    some[0, 0, 0] = np.inf
    _keep("some_nan.nii.gz", pack(nifti(some)), some, flags=["not_finite"])
    array = anatomy(shape=(20, 18, 5))
    _keep("five_slices.nii", nifti(array), array, flags=["few_slices"])
    array = anatomy(np.int64) + 2**33
    _keep("int64.nii", nib.Nifti1Image(array, AFFINE, dtype=np.int64).to_bytes(), array)
    array = anatomy(np.float64).round() + 2.0**30 + 1  # whole numbers that float32 does not have
    _keep("double.nii", nifti(array), array)
    array = (anatomy(np.float32) * 60).clip(0, 65535).astype(np.uint16)
    _keep("uint16.nii", nifti(array), array)


def _other_formats() -> None:
    for name, array in (("short", anatomy(">i2")), ("float", anatomy(">f4"))):
        _keep(f"{name}.mgz", pack(mgh(array)), array, nib.MGHImage(array, AFFINE).affine)
    array = anatomy(np.uint8)
    _keep("byte.mgh", mgh(array), array, nib.MGHImage(array, AFFINE).affine)
    array = anatomy()
    _keep("misnamed.mgz", mgh(array), array, nib.MGHImage(array, AFFINE).affine, ["misnamed"])
    for name, array, encoding in (
        ("raw", anatomy(), "raw"),
        ("gz", anatomy(np.float32), "gzip"),
        ("big", anatomy(">f8"), "raw"),
    ):
        _keep(f"{name}.nrrd", nrrd(array, encoding=encoding), array)
    array = anatomy()
    ras = " ".join("({:.17g},{:.17g},{:.17g})".format(*column) for column in AFFINE[:3, :3].T)
    origin = "({:.17g},{:.17g},{:.17g})".format(*AFFINE[:3, 3])
    content = nrrd(array, space="right-anterior-superior", space_directions=ras, space_origin=origin)
    _keep("ras.nrrd", content, array)
    array = anatomy()
    _keep("detached.nhdr", nrrd(array, data_file="voxels1.raw"), array, others={"voxels1.raw": array.tobytes("F")})
    array = anatomy()
    halves = {f"part{k}.raw": array[:, :, 5 * k : 5 * k + 5].tobytes("F") for k in range(2)}
    _keep("list.nhdr", nrrd(array, data_file="LIST\npart0.raw\npart1.raw"), array, others=halves)
    for name, array, compressed in (
        ("raw", anatomy(), False),
        ("zlib", anatomy(np.float32), True),
        ("big", anatomy(">i2"), False),
    ):
        _keep(f"{name}.mha", meta(array, compressed=compressed), array)
    array = anatomy()
    zipped = {"voxels2.zraw": zlib.compress(array.tobytes("F"))}
    _keep("detached.mhd", meta(array, compressed=True, data_file="voxels2.zraw"), array, others=zipped)
    array = anatomy()
    slices = {f"slice{k:03d}.raw": array[:, :, k].tobytes("F") for k in range(SHAPE[2])}
    _keep("slices.mhd", meta(array, data_file="slice%03d.raw 0 9 1"), array, others=slices)
    array = anatomy()
    _keep("first.mnc", minc(array), array, minc_affine())


for _fill in (_impostors, _damaged_streams, _impossible_headers, _placeless, _text_headers, _values):
    _fill()
for _fill in (_odd_and_right, _odd_places, _odd_values, _other_formats):
    _fill()
