"""Nothing of a patient in a store made of DICOM: every identifying value of every file is looked for in every byte."""

import json
import re
import zlib

import dicom_prep as files
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.datadict import dictionary_VR, keyword_dict

from preprocessing import convert


def _lines(text):
    return text.split()


# DICOM PS3.15 table E.1-1 (basic profile), as far as an image holds them
_NAMES = _lines("""PatientName OtherPatientNames PatientBirthName PatientMotherBirthName ReferringPhysicianName
    OperatorsName PerformingPhysicianName RequestingPhysician PhysiciansOfRecord NameOfPhysiciansReadingStudy
    ResponsiblePerson ScheduledPerformingPhysicianName ConsultingPhysicianName HumanPerformerName""")
_IDS = _lines("""PatientID AccessionNumber StudyID OtherPatientIDs MedicalRecordLocator IssuerOfPatientID AdmissionID
    MilitaryRank FillerOrderNumberImagingServiceRequest PlacerOrderNumberImagingServiceRequest RequestedProcedureID
    PerformedProcedureStepID ScheduledProcedureStepID ServiceEpisodeID DeviceSerialNumber PlateID CassetteID
    StationName InstitutionName InstitutionalDepartmentName RequestingService ScheduledStudyLocation
    CurrentPatientLocation PatientInstitutionResidence DetectorID GantryID DeviceUID
    ImageComments PatientComments StudyDescription SeriesDescription ProtocolName AdditionalPatientHistory
    AdmittingDiagnosesDescription Allergies Occupation InstitutionAddress PatientAddress PatientTelephoneNumbers
    CountryOfResidence RegionOfResidence PatientReligiousPreference EthnicGroup RequestedProcedureDescription
    PerformedProcedureStepDescription RequestAttributesSequence DerivationDescription AcquisitionComments
    FrameComments ContributionDescription TextComments InterpretationText IdentifyingComments""")
_DATES = _lines("""PatientBirthDate StudyDate SeriesDate AcquisitionDate ContentDate OverlayDate CurveDate AdmittingDate
    ScheduledProcedureStepStartDate PerformedProcedureStepStartDate InstanceCreationDate LastMenstrualDate
    DateOfSecondaryCapture""")
_UIDS = _lines("""StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID InstanceCreatorUID
    SynchronizationFrameOfReferenceUID IrradiationEventUID ConcatenationUID DimensionOrganizationUID""")
_TEXT = ("PN", "LO", "SH", "ST", "LT", "UT", "CS", "AE", "UC")


def _telling():
    """{keyword: value}: another value in every identifying tag."""
    tags = {}
    for k, keyword in enumerate(_NAMES):
        tags[keyword] = f"Zwiebelfisch{k:02d}^Quirin{k:02d}"
    for k, keyword in enumerate(_IDS):
        vr = dictionary_VR(keyword) if keyword in keyword_dict else ""
        if vr in _TEXT:
            tags[keyword] = f"QZX{k:02d}ID"
        elif vr == "UI":
            tags[keyword] = f"1.9.77.4711.{k}"
    for k, keyword in enumerate(_DATES):
        tags[keyword] = f"19{30 + k}0{1 + k % 9}17"
    for k, keyword in enumerate(_UIDS):
        if keyword != "SOPInstanceUID":
            tags[keyword] = f"1.9.77.4712.{k}"
    return tags


def _texts(root):
    """(file, everything that can be read in it: its path, its bytes, and what its format decodes to)."""
    for file in sorted(root.rglob("*")):
        if not file.is_file():
            continue
        content = file.read_bytes()
        found = [str(file.relative_to(root)), content.decode("latin-1")]
        if file.suffix == ".json":
            found.append(json.dumps(json.loads(content), ensure_ascii=False))
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            found += [str(table.to_pydict()), str(table.schema.metadata)]
        for start in (match.start() for match in re.finditer(rb"\x1f\x8b\x08|\x78[\x01\x9c\xda]", content)):
            try:
                found.append(zlib.decompressobj(47).decompress(content[start:]).decode("latin-1"))
            except zlib.error:
                continue
        yield file.relative_to(root), "\n".join(found)


def _check_no_trace(root, secrets, output=""):
    """`secrets` are nowhere in the store, nor what they are made of; `output`: what was printed."""
    words = set()
    for secret in secrets:
        words.update({secret, *re.split(r"[\^=\\]", secret)})
    words = {word.lower() for word in words if len(word) >= 5}
    assert words
    holds = 0
    for name, text in [*_texts(root), ("the screen", output)]:
        low = text.lower()
        holds += len(low)
        found = [word for word in words if word in low]
        assert not found, (str(name), found)
    assert holds > 10_000


def _archive(root, secrets):
    """A clinical archive whose tags, folders and files tell whose it is: good series and one of every kind refused."""
    patient = root / "Zwiebelfisch00_Quirin00" / "1930-01-17"
    common = {key: value for key, value in secrets.items() if not key.endswith("UID") or key == "FrameOfReferenceUID"}
    common["StudyInstanceUID"] = secrets["StudyInstanceUID"]

    def series(folder, number, values, **own):
        tags = {**common, "SeriesInstanceUID": f"{secrets['SeriesInstanceUID']}.{number}", **own}
        each = [{"SOPInstanceUID": f"1.9.77.4713.{number}.{k}"} for k in range(len(values))]
        for path in files.series(folder, values, each=each, **tags):
            path.rename(path.with_name(f"{pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID}.dcm"))

    series(patient / "QZX00ID", 1, files.body(8))
    series(patient / "mixed", 2, files.body(6, seed=1))
    series(patient / "mixed", 3, files.body(6, seed=2), modality="MR")
    gap = {**common, "SeriesInstanceUID": "1.9.77.4712.9"}
    files.series(patient / "gap QZX00ID", files.body(6), [0, 2, 4, 8, 10, 12], **gap)
    series(patient / "scout", 5, files.body(4), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    series(patient / "burned", 6, files.body(4), BurnedInAnnotation="YES")
    (patient / "Zwiebelfisch00.dcm").write_bytes(b"garbage that is no DICOM file \x00\x01" * 30)
    (patient / "Quirin00_empty.dcm").write_bytes(b"")
    cut = sorted((patient / "QZX00ID").iterdir())
    (patient / "cut").mkdir()
    for k, path in enumerate(cut):
        item = pydicom.dcmread(path)
        item.SeriesInstanceUID, item.SOPInstanceUID = "1.9.77.4712.8", f"1.9.77.4712.8.{k}"
        item.save_as(patient / "cut" / f"Quirin00_{k}")
    broken = patient / "cut" / "Quirin00_3"
    broken.write_bytes(broken.read_bytes()[:-100])


@pytest.mark.slow
def test_no_value_of_any_identifying_tag_reaches_store_or_screen(tmp_path, capfd):
    secrets = _telling()
    archive = tmp_path / "data" / "archive"
    _archive(archive, secrets)
    report = convert(archive, tmp_path / "store", spacing="keep", workers=1)
    output = "".join(capfd.readouterr())
    reasons = sorted(reason for _, reason in report.refused)
    assert reasons == ["burned_in", "empty_file", "localiser", "missing_slices", "truncated", "unreadable"]
    assert report.converted == 3
    values = [str(value) for value in secrets.values()]
    spellings = ["1930-01-17", "17.01.1930", "1.9.77.47", "Zwiebelfisch", "Quirin", "QZX00"]
    printed = output.replace(str(archive), "").replace(str(tmp_path / "store"), "")  # as typed
    _check_no_trace(tmp_path / "store", [*values, *spellings, str(tmp_path), tmp_path.name], printed)


def test_the_dry_run_prints_no_name(tmp_path, capfd):
    secrets = _telling()
    archive = tmp_path / "data" / "archive"
    _archive(archive, secrets)
    convert(archive, tmp_path / "store", dry_run=True)
    output = "".join(capfd.readouterr())
    assert "would make" in output
    assert not re.search("zwiebelfisch|quirin|qzx00|1930|1\\.9\\.77", output.lower())


def test_the_check_itself_finds_what_is_hidden(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_bytes(b"x" * 20_000)
    _check_no_trace(tmp_path / "a", ["Zwiebelfisch"])
    for content in (b"zwiebelFISCH", zlib.compress(b"Zwiebelfisch" * 3), b"xZwiebelfischx"):
        (tmp_path / "a" / "b.bin").write_bytes(b"\0\1" + content)
        with pytest.raises(AssertionError):
            _check_no_trace(tmp_path / "a", ["Zwiebelfisch"])


def _identifying(path):
    """Every identifying value of a real file, sequences included."""
    data = pydicom.dcmread(path, stop_before_pixels=True)
    names = {*_NAMES, *_IDS, *_DATES}
    found = []

    def visit(dataset, element):
        value = str(element.value)
        own_uid = element.VR == "UI" and not value.startswith("1.2.840.10008.") and value.count(".") > 3
        if own_uid or element.VR == "PN" or (element.keyword in names and element.VR in (*_TEXT, "DA")):
            found.append(value)

    data.walk(visit)
    return found


@pytest.mark.slow
def test_no_identifying_value_of_the_real_files_reaches_the_store(data, tmp_path, capfd):
    folders = [data / "ct_qin_lung_philips" / "dicom_8_slices", data / "dicom_mr_studyforrest" / "dicom_18_slices",
               *sorted((data / "odd").glob("dicom_*"))]  # fmt: skip
    secrets = {value for folder in folders for path in folder.iterdir() for value in _identifying(path)}
    assert len(secrets) > 60
    report = convert(folders, tmp_path / "store", spacing="keep", workers=1)
    assert report.converted >= 4
    printed = "".join(capfd.readouterr()).replace(str(data), "")
    _check_no_trace(tmp_path / "store", [*secrets, str(data)], printed)
