"""Lists: a scan a row, targets in further columns; a bad row refuses itself, a list that is none is one sentence."""

import json

import numpy as np
import pandas as pd
import pytest
import trees_prep as trees
from test_prep_sources_layouts import find, good, refused

from preprocessing import convert
from ssl3d.data.store import open_store


def write(path, rows, columns):
    """A list in the format of its name."""
    frame = pd.DataFrame(rows, columns=columns)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


COLUMNS = ["path", "subject", "session", "modality", "label_path", "age", "grade"]


@pytest.fixture
def scans(tmp_path):
    for number, name in enumerate(("a", "b", "c")):
        trees.image(tmp_path / "data" / "deep" / f"{name}.nii.gz", number)
    trees.mask(tmp_path / "data" / "a_label.nii.gz")
    return tmp_path / "data"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_list_says_what_its_scans_are(scans, tmp_path, suffix):
    rows = [
        ["deep/a.nii.gz", "anna", "v1", "mr", "a_label.nii.gz", 61.5, "low"],
        ["deep/b.nii.gz", "anna", "v2", "MRI", None, None, "high"],
        ["deep/c.nii.gz", "bert", None, None, None, 40, "low"],
    ]
    file = write(scans / f"list{suffix}", rows, COLUMNS)
    report = convert(file, tmp_path / "store", spacing="keep", workers=1)
    assert (report.converted, report.refused) == (3, [])
    index = open_store(tmp_path / "store").index
    assert index["id"].tolist() == ["a", "b", "c"]
    assert index["subject"].tolist() == ["anna", "anna", "bert"]
    assert index["session"].tolist()[:2] == ["v1", "v2"]
    assert index["modality"].tolist()[:2] == [["mr"], ["mr"]]
    assert index["has_label"].tolist() == [True, False, False]
    assert index["targets"].tolist() == [{"age": 61.5, "grade": 1.0}, {"grade": 0.0}, {"age": 40.0, "grade": 1.0}]
    codes = json.loads((tmp_path / "store" / "conversion.json").read_text())["codes"]
    assert codes == {"target grade": {"high": 0, "low": 1}}


def test_a_bad_row_refuses_itself_only(scans, monkeypatch):
    monkeypatch.chdir(scans)
    rows = [
        ["deep/a.nii.gz", "s1", "", "", "", "1", "x"],
        ["", "s2", "", "", "", "2", "x"],
        ["deep/none.nii.gz", "s3", "", "", "", "3", "x"],
        ["deep/../deep/a.nii.gz", "s4", "", "", "", "4", "x"],
        ["deep/b.nii.gz", "s5", "", "xray", "", "5", "x"],
        ["deep/b.nii.gz", "s6", "", "", "gone.nii.gz", "6", "x"],
        ["deep/b.nii.gz", "s7", "", "", "", "old", "x"],
        ["deep/c.nii.gz", "s8", "", "", "", "8", "x"],
        ["list.csv", "s9", "", "", "", "9", "x"],
    ]
    sources = find(write(scans / "list.csv", rows, COLUMNS).name)
    assert good(sources).keys() == {"a", "c"}
    assert refused(sources) == {
        "list.csv row 3": "bad_row",
        "list.csv row 4 (deep/none.nii.gz)": "missing_file",
        "list.csv row 5 (deep/../deep/a.nii.gz)": "listed_twice",
        "list.csv row 6 (deep/b.nii.gz)": "bad_row",
        "list.csv row 7 (deep/b.nii.gz)": "listed_twice",
        "list.csv row 8 (deep/b.nii.gz)": "bad_row",
        "list.csv row 10 (list.csv)": "unreadable",
    }
    for source in sources:
        if source.problem is not None and source.problem.reason != "unreadable":
            row = source.shown.split(" (")[0].removeprefix("list.csv ")
            assert row in source.problem.detail and source.problem.detail.count(". ") == 0


def test_a_row_with_a_missing_label_is_named(scans):
    file = write(scans / "list.csv", [["deep/b.nii.gz", "gone.nii.gz"]], ["path", "label_path"])
    (source,) = find(file)
    assert source.problem.reason == "missing_file" and "row 2 names the label gone.nii.gz" in source.problem.detail


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read as a table"),
        ("scan,age\na.nii.gz,3\n", "no column 'path'"),
        ("paths,age\na.nii.gz,3\n", "rename 'paths'"),
        ("path,subject\n", "has no rows"),
        ("path,age,age \na,1,2\n", "two columns of one name"),
        ("path,age\na,1,2,3\nb,1,2,3,4\n", "cannot be read as a table"),
    ],
)
def test_a_list_that_is_none_is_one_sentence(tmp_path, text, said):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        find(tmp_path / "list.csv")
    assert "list.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_parquet_is_one_sentence(tmp_path):
    (tmp_path / "list.parquet").write_bytes(b"PAR1" + bytes(99))
    with pytest.raises(ValueError, match=r"list.parquet cannot be read as a table") as caught:
        find(tmp_path / "list.parquet")
    assert "\n" not in str(caught.value)


def test_which_columns_are_targets(scans):
    said = []
    rows = [[f"deep/{n}.nii.gz", f"Name {n}", k, "x", f"note {n}", ""] for k, n in enumerate("abc")]
    columns = ["path", "patient_name", "score", "subject_id", "note", "empty"]
    sources = good(find(write(scans / "list.csv", rows, columns), said=said))
    assert sources["b"].targets == {"score": 1.0}
    assert sources["b"].target_classes == {"subject_id": "x", "note": "note b"}
    assert said[:2] == [
        "warning: column 'patient_name' of list.csv is no target: its name says that it identifies",
        "warning: column 'subject_id' of list.csv is taken as a target: the list's own is 'subject'",
    ]
    many = write(scans / "many.csv", [["deep/a.nii.gz", f"t{k}"] for k in range(9)], ["path", "text"])
    assert not good(find(many, said=said))["a"].target_classes
    assert "warning: column 'text' of many.csv is no target: no text in it repeats" in said


def test_semicolons_and_a_byte_order_mark(scans):
    (scans / "list.csv").write_text("\ufeffpath;subject;age\ndeep/a.nii.gz;anna;3,5\ndeep/b.nii.gz;bert;4\n")
    sources = good(find(scans / "list.csv"))
    assert {s.subject: s.targets["age"] for s in sources.values()} == {"anna": 3.5, "bert": 4.0}


def test_rows_may_name_folders_archives_and_cases_of_data_sets(tmp_path, ct_series):
    values = np.random.default_rng(0).normal(0, 200, size=(6, 14, 10)).round()
    ct_series(tmp_path / "series", values, [2.0 * k for k in range(6)])
    trees.nnunet(tmp_path / "D")
    (tmp_path / "empty").mkdir()
    rows = [["series", "s1", "1"], ["D", "s2", "2"], ["empty", "s3", "3"]]
    sources = find(write(tmp_path / "list.csv", rows, ["path", "subject", "score"]))
    assert {(s.subject, s.targets["score"], len(s.paths)) for s in sources if s.problem is None} == {
        ("s1", 1.0, 6), ("s2", 2.0, 2),
    }  # fmt: skip
    assert [s.shown.split(" row ")[1] for s in sources if s.problem is not None] == ["4 (empty)"]
    trees.image(tmp_path / "two" / "x.nii.gz", 1)
    trees.image(tmp_path / "two" / "y.nii.gz", 2)
    trees.mask(tmp_path / "label.nii.gz")
    (source,) = find(write(tmp_path / "list.csv", [["two", "label.nii.gz"]], ["path", "label_path"]))
    assert source.problem.detail == "row 2 gives one label to 2 scans"


def test_a_list_says_more_than_the_folder_it_lists(scans):
    file = write(scans / "list.csv", [["deep/a.nii.gz", "anna"]], ["path", "subject"])
    for order in ([file, scans], [scans, file]):
        scanned = [source for source in find(*order) if source.paths[0].name == "a.nii.gz"]
        assert [source.subject for source in scanned] == ["anna"]


def test_a_number_here_and_a_class_there_is_refused(scans, tmp_path):
    write(scans / "one.csv", [["deep/a.nii.gz", 1]], ["path", "grade"])
    write(scans / "two.csv", [["deep/b.nii.gz", "low"]], ["path", "grade"])
    with pytest.raises(ValueError, match="target 'grade' is a number in one table and a class in another"):
        convert([scans / "one.csv", scans / "two.csv"], tmp_path / "store", workers=1)


def test_classes_of_a_later_list_follow_those_of_the_store(scans, tmp_path):
    write(scans / "one.csv", [["deep/b.nii.gz", "mid"]], ["path", "grade"])
    write(scans / "two.csv", [["deep/b.nii.gz", "mid"], ["deep/a.nii.gz", "high"]], ["path", "grade"])
    for name in ("one.csv", "two.csv"):
        convert(scans / name, tmp_path / "store", spacing="keep", workers=1)
    assert open_store(tmp_path / "store").index["targets"].tolist() == [{"grade": 1.0}, {"grade": 0.0}]
