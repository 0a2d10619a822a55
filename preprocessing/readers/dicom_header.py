"""What a DICOM object says before its pixels are read: what it is, whose, and where each of its pictures lies.

A classic object holds one picture, an enhanced one a picture a frame, a Siemens mosaic the tiles of a whole volume.
All of them become the same list of `Picture`, so that one set of rules groups and checks them.
"""

from __future__ import annotations

import re
import struct
import sys
import unicodedata
import warnings
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from preprocessing.readers import sniff
from preprocessing.refusal import Refusal

EXTENSIONS = (".dcm", ".dicom", ".ima")
MODALITIES = {"CT": "ct", "MR": "mr", "PT": "pet"}
IMAGE, SEGMENTATION, CONTOURS, NO_IMAGE = "image", "segmentation", "contours", "no image"
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # bit planes, label maps
_CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"  # RT Structure Set
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame forms .7.1 to .7.4
_LOCALISER = ("LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM", "SURVIEW")
_SCREEN = ("SCREEN SAVE", "SCREENSHOT", "DOSE_INFO", "DOSE INFO")
_PROJECTION = ("MIP", "MINIP", "MNIP", "MAXIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE", "VOLUME_RENDER", "VOLREND",
               "SURFACE_RENDER", "CURVED_MPR", "SSD", "VRT")  # fmt: skip
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
_PRIVATE_B_VALUES = ((0x0043, 0x1039), (0x0019, 0x100C), (0x2001, 0x1003))  # GE, Siemens, Philips
_KEYWORDS = [
    keyword
    for line in (
        "SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID FrameOfReferenceUID PatientID Modality",
        "ImageType SeriesDescription ProtocolName BurnedInAnnotation Rows Columns SamplesPerPixel NumberOfFrames",
        "PhotometricInterpretation ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness EchoTime",
        "EchoNumbers TemporalPositionIdentifier TriggerTime AcquisitionNumber DiffusionBValue InstanceNumber",
        "DiffusionGradientOrientation ConvolutionKernel SharedFunctionalGroupsSequence ReferencedSeriesSequence",
        "PerFrameFunctionalGroupsSequence ReferencedFrameOfReferenceSequence VolumeBasedCalculationTechnique",
        "SegmentSequence",
    )
    for keyword in line.split()
]
_IDENTIFYING = [
    keyword
    for line in (
        "PatientName PatientID OtherPatientNames OtherPatientIDs PatientBirthName PatientMotherBirthName",
        "PatientBirthDate AccessionNumber StudyID ReferringPhysicianName PerformingPhysicianName OperatorsName",
        "RequestingPhysician PhysiciansOfRecord NameOfPhysiciansReadingStudy InstitutionName StationName",
        "MedicalRecordLocator IssuerOfPatientID AdmissionID PatientAddress PatientTelephoneNumbers",
    )
    for keyword in line.split()
]
_TAGS: list[Any] = [*_KEYWORDS, *_IDENTIFYING, "SpecificCharacterSet", *(Tag(*pair) for pair in _PRIVATE_B_VALUES)]
Shared = TypeVar("Shared", bound=Hashable)
# What a damaged header or picture makes pydicom and the codecs raise; the disk's own errors are told apart by errno.
BROKEN = (InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError,
          IndexError, NotImplementedError, AssertionError, ArithmeticError, RuntimeError, RecursionError, struct.error,
          zlib.error)  # fmt: skip


@lru_cache(maxsize=4096)
def _shared(value: Shared) -> Shared:
    """The first of equal values: the headers of millions of files hold few different ones."""
    return value


@dataclass(frozen=True, slots=True)
class Picture:
    """One slice, or one mosaic of slices: frame `frame` of `file`.

    `position` (3,) mm, `axes` (6,) direction cosines of a row and of a column, both LPS+; None where not stated.
    `spacing`: mm between rows, between columns. `thickness` mm or 0. The rest tells the volumes of a series apart.
    """

    file: Path
    frame: int
    shape: tuple[int, int]
    position: tuple[float, ...] | None
    axes: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    thickness: float
    number: int
    image_type: tuple[str, ...]
    stack: str
    echo: tuple[float, ...]
    b_value: float
    gradient: tuple[float, ...]
    time: int
    trigger: float
    acquisition: int
    kernel: str

    @property
    def mosaic(self) -> bool:
        """Whether it holds the slices of a volume as tiles."""
        return "MOSAIC" in self.image_type

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector across the slice, LPS+."""
        assert self.axes is not None
        return np.cross(self.axes[:3], self.axes[3:])


@dataclass(slots=True)
class Object:
    """A DICOM file without its pixels. What identifies stays in memory: nothing of it is written to a store.

    `problem`: why its pictures are no scan. `references`: series that a label object belongs to, `classes` its names.
    `words`: of three letters and more from all that names somebody, lower case: no folder's name may repeat them.
    """

    kind: str
    file: Path
    series: str
    study: str
    instance: str
    patient: str
    modality: str
    pictures: list[Picture] = field(default_factory=list)
    problem: Refusal | None = None
    localiser_by_name: bool = False
    frame_of_reference: str = ""
    references: frozenset[str] = frozenset()
    classes: dict[int, str] = field(default_factory=dict)
    words: frozenset[str] = frozenset()


def is_dicom(path: Path) -> bool:
    """True for a file with DICOM's magic word, or that begins as old files without one do, whatever its name."""
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    if len(start) < 16 or start[0] not in (2, 8) or start[1] != 0 or start[3] != 0:
        return False
    if start[4:6] in (b"UL", b"UI", b"CS", b"DA", b"TM", b"SH", b"LO", b"OB"):
        return True
    return start[0] == 8 and start[2] in (0, 1, 5, 8) and 0 < int.from_bytes(start[4:8], "little") <= 64


def check_file(path: Path) -> None:
    """Raises Refusal unless `path` is a file that may be read and that is not plainly something else than DICOM.

    Its words name no file: the name of a DICOM file may be the patient's.
    """
    try:
        sniff.check_is_file(path)
        if not is_dicom(path):
            with path.open("rb") as file:
                sniff.check_is_no_impostor(file.read(sniff.HEAD_BYTES))
    except Refusal as refusal:
        raise Refusal(refusal.reason) from refusal


def load(path: Path, **options: Any) -> pydicom.Dataset:
    """A data set, with or without preamble and file meta information. Raises Refusal `unreadable`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path, force=True, **options)
            if not data.file_meta.get("TransferSyntaxUID", ""):
                implicit = data.original_encoding[0] is not False
                data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            return data
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the file
            raise
        raise Refusal("unreadable", "a file could not be read as DICOM") from error


def describe(path: Path) -> Object:
    """What a file holds. Raises Refusal when it is no DICOM file that can be read."""
    check_file(path)
    data = load(path, stop_before_pixels=True, specific_tags=_TAGS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _describe(path, data)
    except Refusal:
        raise
    except BROKEN as error:
        raise Refusal("unreadable", "a value in the DICOM header could not be understood") from error


def _describe(path: Path, data: pydicom.Dataset) -> Object:
    """See `describe`."""
    instance = _text(data, "SOPInstanceUID")
    sop_class = _text(data, "SOPClassUID")
    if not instance and "MediaStorageSOPClassUID" not in data.file_meta and "Rows" not in data:
        raise Refusal("unreadable", "a file could not be read as DICOM")
    series = _text(data, "SeriesInstanceUID") or instance
    found = Object(
        kind=_kind(data, sop_class),
        file=path,
        series=_shared(series),
        study=_shared(_text(data, "StudyInstanceUID") or series),
        instance=instance,
        patient=_shared(_text(data, "PatientID")),
        modality=MODALITIES.get(_text(data, "Modality"), "other"),
        frame_of_reference=_shared(_text(data, "FrameOfReferenceUID")),
        words=_shared(_words(data)),
    )
    if found.kind == IMAGE:
        words = " ".join(_text(data, name).lower() for name in ("SeriesDescription", "ProtocolName"))
        found.localiser_by_name = any(word in words for word in ("localiz", "localis", "scout", "topogram", "survey",
                                                                 "surview", "scano", "3-plane", "3 plane"))  # fmt: skip
        found.problem = _problem(data, sop_class)
        found.pictures = pictures_of(path, data)
    elif found.kind in (SEGMENTATION, CONTOURS):
        found.references = frozenset(_references(data))
        segments = data.get("SegmentSequence", None) or []
        found.classes = {int(item.SegmentNumber): _text(item, "SegmentLabel") for item in segments}
    return found


def _words(data: pydicom.Dataset) -> frozenset[str]:
    """Letters and digits of identifying values, cut at anything else; whole identifiers too."""
    values = [_text(data, keyword) for keyword in _IDENTIFYING]
    parts = [part for value in values for part in (*re.split(r"[^0-9a-z]+", fold(value)), plain(value))]
    return frozenset(sys.intern(part) for part in parts if len(part) >= 3)


def fold(text: str) -> str:
    """`text` in lower case, without accents."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()


def plain(text: str) -> str:
    """The letters and digits of `text` alone, folded: what a name is compared by."""
    return re.sub(r"[^0-9a-z]+", "", fold(text))


def _kind(data: pydicom.Dataset, sop_class: str) -> str:
    """What the object is to a conversion."""
    if sop_class in _SEGMENTATIONS:
        return SEGMENTATION
    if sop_class == _CONTOURS:
        return CONTOURS
    return IMAGE if "Rows" in data and "Columns" in data else NO_IMAGE


def _problem(data: pydicom.Dataset, sop_class: str) -> Refusal | None:
    """Why its pictures are no scan, as far as the header says."""
    words = image_type(data)
    technique = _text(data, "VolumeBasedCalculationTechnique")
    if int(data.get("SamplesPerPixel", 1) or 1) != 1 or _text(data, "PhotometricInterpretation") == "PALETTE COLOR":
        return Refusal("colour")
    if f"{sop_class}.".startswith(f"{_SECONDARY_CAPTURE}.") or any(word in words for word in _SCREEN):
        return Refusal("screenshot")
    if _text(data, "BurnedInAnnotation") == "YES":
        return Refusal("burned_in")
    if any(word in words for word in _LOCALISER):
        return Refusal("localiser")
    if any(word in (*words, technique) for word in _PROJECTION):
        return Refusal("derived", "the pictures are projections or renderings, not slices")
    if _text(data, "PhotometricInterpretation") == "MONOCHROME1":
        return Refusal("inverted")
    return None


def _references(data: pydicom.Dataset) -> list[str]:
    """Series that a label object says it belongs to."""
    series = [_text(item, "SeriesInstanceUID") for item in data.get("ReferencedSeriesSequence", None) or []]
    for frame in data.get("ReferencedFrameOfReferenceSequence", None) or []:
        for study in frame.get("RTReferencedStudySequence", None) or []:
            series += [_text(item, "SeriesInstanceUID") for item in study.get("RTReferencedSeriesSequence", None) or []]
    return [uid for uid in series if uid]


def _text(data: pydicom.Dataset, keyword: str) -> str:
    return str(data.get(keyword, "") or "").strip().rstrip("\0")


def image_type(data: pydicom.Dataset) -> tuple[str, ...]:
    """The values of Image Type."""
    return _strings(data.get("ImageType", None))


def _strings(value: Any) -> tuple[str, ...]:
    """The values of a text element; () where it is not there."""
    return tuple(str(word) for word in ([value] if isinstance(value, str) else value or ()))


def frame_count(data: pydicom.Dataset) -> int:
    """Frames of an object; a classic one has one."""
    return max(1, int(data.get("NumberOfFrames", 1) or 1))


class Groups:
    """The functional groups of an enhanced object; for a classic object, the data set itself."""

    def __init__(self, data: pydicom.Dataset) -> None:
        self.data = data
        self.shared = list(data.get("SharedFunctionalGroupsSequence", None) or [])
        self.per_frame = list(data.get("PerFrameFunctionalGroupsSequence", None) or [])

    def find(self, frame: int, sequence: str, keyword: str) -> Any:
        """A value of a frame: its own, the shared one, the data set's; None where nobody states it."""
        for group in (*self.per_frame[frame : frame + 1], *self.shared):
            item = group[sequence].value if sequence in group else None
            if item and keyword in item[0]:
                return item[0][keyword].value
        return self.data.get(keyword)


def _numbers(value: Any, count: int | None = None) -> tuple[float, ...] | None:
    """Finite numbers of a value, `count` of them; None when they are not there."""
    if value is None or isinstance(value, str | bytes) or not isinstance(value, Sequence | pydicom.multival.MultiValue):
        value = () if value in (None, "") else (value,)
    numbers = tuple(float(v) for v in value if v not in (None, ""))
    if (count is not None and len(numbers) != count) or not np.isfinite(numbers).all():
        return None
    return numbers


def number(value: Any, default: float = 0.0) -> float:
    """The first number of a value, `default` where there is none."""
    return (_numbers(value) or (default,))[0]


def _private_b_value(data: pydicom.Dataset) -> float:
    for pair in _PRIVATE_B_VALUES:
        value = data.get(pair)
        if value is not None and not isinstance(value.value, bytes):
            return number(value.value) % 1e6  # GE adds 1e9 to what it stores
    return 0.0


def pictures_of(path: Path, data: pydicom.Dataset) -> list[Picture]:
    """The pictures of a file, in the order of its frames; a single one without a place where they are not placed."""
    groups = Groups(data)
    count = frame_count(data)
    placed = count == 1 or len(groups.per_frame) == count
    found = [_picture(path, groups, k) for k in range(count if placed else 1)]
    return found if placed else [replace(found[0], position=None)]


def _picture(path: Path, groups: Groups, k: int) -> Picture:
    """Frame `k` of a file."""
    data, find = groups.data, groups.find
    shape = _shared((int(data.Rows), int(data.Columns)))
    classic = frame_count(data) == 1 and not groups.per_frame
    frame_type = next((t for name in _FRAME_TYPES if (t := find(k, name, "FrameType"))), None)
    kernel = find(k, "CTReconstructionSequence", "ConvolutionKernel")
    gradient = find(k, "MRDiffusionSequence", "DiffusionGradientOrientation")
    b_value = find(k, "MRDiffusionSequence", "DiffusionBValue")
    return Picture(
        file=path,
        frame=k,
        shape=shape,
        position=_numbers(find(k, "PlanePositionSequence", "ImagePositionPatient"), 3),
        axes=_shared(_numbers(find(k, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)),
        spacing=_shared(_numbers(find(k, "PixelMeasuresSequence", "PixelSpacing"), 2)),
        thickness=number(find(k, "PixelMeasuresSequence", "SliceThickness")),
        number=int(number(data.get("InstanceNumber"))) if classic else k,
        image_type=_shared(_strings(frame_type) or image_type(data)),
        stack=_shared(str(find(k, "FrameContentSequence", "StackID") or "")),
        echo=_shared(_echo(groups, k)),
        b_value=_private_b_value(data) if b_value is None else number(b_value),
        gradient=tuple(round(v, 3) for v in _numbers(gradient) or ()),
        time=int(number(find(k, "FrameContentSequence", "TemporalPositionIndex")
                    or data.get("TemporalPositionIdentifier"))),
        trigger=number(find(k, "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime")
                   or data.get("TriggerTime")),
        acquisition=int(number(find(k, "FrameContentSequence", "FrameAcquisitionNumber")
                           or data.get("AcquisitionNumber"))),
        kernel=_shared(str(kernel or "")),
    )  # fmt: skip


def _echo(groups: Groups, frame: int) -> tuple[float, ...]:
    """(echo number, echo time in ms), as far as stated."""
    time = groups.find(frame, "MREchoSequence", "EffectiveEchoTime") or groups.data.get("EchoTime")
    return (number(groups.data.get("EchoNumbers")), round(number(time), 2))
