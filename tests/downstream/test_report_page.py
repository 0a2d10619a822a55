"""The page: self-contained, escaped, complete, and its numbers those of results.csv."""

import html
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from synthetic_evaluation import rows, search_rows, write_evaluation

from downstream.pictures import Case
from downstream.report import redraw, write_report
from downstream.slices import scan_of
from ssl3d.viewer import MOST_SCANS

VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Checker(HTMLParser):
    """Tags must be balanced; attributes must not lead out of the page."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action"):
                assert value.startswith(("data:", "#")), (tag, name, value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text.append(data)


def _check(path):
    content = path.read_text()
    checker = _Checker()
    checker.feed(content)
    assert checker.open == []
    assert "http" not in content and "@import" not in content
    assert content.count("<script>") == checker.tags.count("script") == ("data-scan" in content)  # the viewer's alone
    assert not re.search(r"url\((?!['\"]?#)", content)
    return " ".join(" ".join(checker.text).split()), checker.tags


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    results = pd.concat(
        [
            rows({"mae": {1: 0.05, 2: 0.0, 4: -0.05}}),
            rows({"mae": {1: 0.2, 2: 0.2, 4: 0.2}}, measure="probe"),
            search_rows(),
        ]
    )
    out = write_evaluation(tmp_path_factory.mktemp("evaluation") / "out", results)
    write_report(out)
    return out


def test_files(evaluation):
    assert {"report.html", "curve.png", "report.json"} <= {p.name for p in evaluation.iterdir()}
    assert (evaluation / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_page_is_whole_and_says_what_it_must(evaluation):
    text, tags = _check(evaluation / "report.html")
    assert tags.count("svg") >= 6 and 2 <= tags.count("img") <= 3
    for words in (
        "Label efficiency on phantom <organs>",
        "this checkpoint (mae) is better than scratch at 1 labelled patient",
        "worse than scratch at 4 labelled patients",
        "better than a random encoder at 1, 2 and 4 labelled patients",
        "at 4 labelled patients: -0.0",
        "lr 0.003",
        "on validation patients only",
        "no test patient was seen in pre-training",
        "What this cannot say",
        "never about the method",
        "ssl3d evaluate runs/mae --suite",
        "Pre-training recipe of mae",
        "rank",
    ):
        assert words in text, words
    assert "prefers-color-scheme: dark" in (evaluation / "report.html").read_text()


def test_summary_holds_the_numbers_of_the_page(evaluation):
    summary = json.loads((evaluation / "report.json").read_text())
    text, _ = _check(evaluation / "report.html")
    compared = [p for p in summary["points"] if p.get("sentence") and p["metric"] == "dice"]
    assert len(compared) == 6
    for point in compared:
        assert point["sentence"] in text
        assert f"{point['score']['mean']:.3f}" in text
    assert summary["conclusions"][0] in text
    assert len(summary["search"]) == 6 and 2 <= len(summary["cases"]) <= 3


def _scans(path):
    found = re.findall(r'data-scan="([^"]*)"', path.read_text())
    return [json.loads(html.unescape(content)) for content in found]


def test_slices_of_cases_can_be_looked_through(evaluation):
    scans = _scans(evaluation / "report.html")
    assert [scan["name"] for scan in scans] == [f"patient {c['patient']}" for c in
            json.loads((evaluation / "report.json").read_text())["cases"]]  # fmt: skip
    for scan in scans:
        assert [item["name"] for item in scan["maps"]] == ["reference", "scratch", "mae"]
        assert scan["outline"] == "reference" and [name for name, _ in scan["paints"]] == ["head", "body"]
        assert scan["spacing"] == [2, 1, 1.25] and scan["size"] == [20, 60, 48] and scan["step"] == [1, 1, 1]
        end = np.add(scan["origin"], scan["shape"])
        assert (np.array(scan["shape"]) <= scan["size"]).all() and (end <= scan["size"]).all()


def test_a_box_holds_every_label_and_no_ignored_one():
    reference = np.zeros((10, 200, 200), int)
    reference[4:6, 100:120, 60:70] = 2
    reference[:, :5, :5] = 255
    prediction = np.zeros_like(reference)
    prediction[7, 90:95, 120:122] = 3
    image = np.random.default_rng(0).normal(size=reference.shape).astype(np.float32)
    case = Case("c", "p", image, reference, {"mae": prediction}, (4.0, 1.0, 1.0), classes={2: "a", 3: "b"})
    scan = scan_of(case, ["mae"])
    assert scan.image.shape == (10, 51, 105) and scan.grid.origin == (0, 79, 38)
    at = tuple(slice(o, o + n) for o, n in zip(scan.grid.origin, scan.image.shape))
    np.testing.assert_array_equal(scan.maps["reference"], reference[at])
    np.testing.assert_array_equal(scan.maps["mae"], prediction[at])
    inside = image[at]
    low, high = np.percentile(inside, [0.5, 99.5])
    np.testing.assert_allclose(scan.image, 255 * np.clip((inside - low) / (high - low), 0, 1), atol=0.51)


def test_no_more_cases_than_a_page_can_hold_have_slices(tmp_path):
    out = write_evaluation(tmp_path / "out", rows({"mae": {2: 0.1}}, patients=45, seeds=[0]), pictures=14)
    text = write_report(out).read_text()
    assert text.count("data-scan=") == MOST_SCANS == 12 and text.count("<img ") == 14


def test_an_evaluation_without_pictures_has_no_script(tmp_path):
    page = write_report(write_evaluation(tmp_path / "out", rows({"mae": {2: 0.05}}), pictures=0))
    _, tags = _check(page)
    assert "script" not in tags and ".viewer" not in page.read_text()


def test_redrawing_gives_the_same_bytes(evaluation):
    before = (evaluation / "report.html").read_bytes()
    assert redraw([evaluation]) == [evaluation / "report.html"]
    assert (evaluation / "report.html").read_bytes() == before


def test_hostile_names_are_escaped(tmp_path):
    table = rows({"mae": {2: 0.0}})
    table["arm"] = table["arm"].replace("mae", "<script>alert(1)</script>")
    table["patient"] = table["patient"].replace("p03", '"><b>x')
    out = write_evaluation(tmp_path / "out", table)
    text, tags = _check(write_report(out))
    assert tags.count("script") == 1 and "b" not in tags and "<script>alert(1)</script>" in text


def test_null_result_is_the_headline(tmp_path):
    table = rows({"mae": {1: 0.0, 2: 0.0}})
    paired = table["arm"] == "mae"
    table.loc[paired, "value"] = table.loc[~paired & (table["n_labelled"] < 4), "value"].to_numpy()
    table.loc[paired, "value"] += np.where(table.loc[paired, "seed"] % 2, 0.01, -0.01)
    text, _ = _check(write_report(write_evaluation(tmp_path / "out", table, pictures=0)))
    lead = text[: text.index("In words")]
    assert "this checkpoint (mae) is not distinguishable from scratch at 1 and 2 labelled patients." in lead


def test_bare_results_are_enough(tmp_path):
    rows({"mae": {2: 0.05}}, seeds=[0]).to_csv(tmp_path / "results.csv", index=False)
    text, _ = _check(write_report(tmp_path))
    assert "cannot be said (only one training seed)" in text
    assert "fewer than 3 training seeds behind them have no interval" in text and "so intervals are wide" not in text
    assert "Nothing: every arm was trained with the settings of the suite." in text


def test_warnings_stand_above_the_figure(evaluation, tmp_path):
    out = write_evaluation(tmp_path / "out", rows({"mae": {2: 0.05}}), pictures=0)
    warning = "runs/mae comes without seen.parquet: whether its pre-training saw test patients could not be checked."
    (out / "warnings.json").write_text(json.dumps([warning]))
    text, _ = _check(write_report(out))
    assert text.index(warning) < text.index("In words") and "no test patient was seen" not in text


def test_merge_compares_arms_of_one_suite(tmp_path):
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, rows({f"mae-{name}": {2: 0.03}}), pictures=0)
    pages = redraw([tmp_path / "a", tmp_path / "b"])
    assert pages[-1] == tmp_path / "a" / "comparison" / "report.html"
    text, _ = _check(pages[-1])
    assert "mae-a" in text and "mae-b" in text and "scratch (b)" not in text  # equal baselines are one


def test_merge_keeps_unequal_baselines_apart(tmp_path):
    write_evaluation(tmp_path / "a", rows({"mae": {2: 0.03}}), pictures=0)
    write_evaluation(tmp_path / "b", rows({"mae": {2: 0.03}}, seed=1), pictures=0)
    pages = redraw([tmp_path / "a", tmp_path / "b"])
    arms = {p["arm"]: p for p in json.loads((pages[-1].parent / "report.json").read_text())["points"]
            if p["difference"] and p["metric"] == "dice"}  # fmt: skip
    assert {arm: p["baseline"] for arm, p in arms.items()} == {"mae": "scratch", "mae (b)": "scratch (b)"}
    alone = json.loads((tmp_path / "b" / "report.json").read_text())["points"]
    own = next(p for p in alone if p["arm"] == "mae" and p["metric"] == "dice")
    assert arms["mae (b)"]["difference"] == own["difference"]


def test_merge_refuses_another_suite_and_names_the_difference(tmp_path):
    write_evaluation(tmp_path / "a", rows({"mae": {2: 0.03}}), steps=200)
    write_evaluation(tmp_path / "b", rows({"mae": {2: 0.03}}), steps=400)
    with pytest.raises(ValueError, match=r"measures.finetune.steps is 200 in the first and 400 in the second"):
        redraw([tmp_path / "a", tmp_path / "b"])
    assert not (tmp_path / "a" / "report.html").exists()


def test_merge_refuses_other_test_patients(tmp_path):
    write_evaluation(tmp_path / "a", rows({"mae": {2: 0.03}}))
    write_evaluation(tmp_path / "b", rows({"mae": {2: 0.03}}, patients=11))
    with pytest.raises(ValueError, match="the set of test patients is 12 patients"):
        redraw([tmp_path / "a", tmp_path / "b"])


def test_merge_refuses_another_pool_another_store_and_other_validation_patients(tmp_path):
    """Wherever both directories tell; one from before these were kept is taken at its word."""
    table = rows({"mae": {2: 0.03}})
    a, b = (write_evaluation(tmp_path / name, table) for name in ("a", "b"))
    pools = {a: ["x", "y"], b: ["x", "z"]}
    (a / "split.json").write_text(json.dumps({"pool": pools[a], "validation": [], "test": []}))
    redraw([a, b])
    (b / "split.json").write_text(json.dumps({"pool": pools[b], "validation": [], "test": []}))
    with pytest.raises(ValueError, match="the pool of labelled patients is 2 patients"):
        redraw([a, b])
    shutil.copy(a / "split.json", b)
    for out, digest in ((a, "12ab"), (b, "34cd")):
        (out / "data.json").write_text(json.dumps({"digest": digest}))
    with pytest.raises(ValueError, match="the labelled store is 12ab in the first and 34cd in the second"):
        redraw([a, b])
    other = pd.concat([table, search_rows()])
    first, second = (write_evaluation(tmp_path / name, other) for name in ("c", "d"))
    rows_ = pd.read_csv(second / "results.csv", keep_default_na=False)
    rows_.loc[rows_["split"] == "validation", "patient"] += "x"
    rows_.to_csv(second / "results.csv", index=False)
    with pytest.raises(ValueError, match="the set of validation patients"):
        redraw([first, second])


def test_a_directory_twice_is_refused(tmp_path):
    out = write_evaluation(tmp_path / "a", rows({"mae": {2: 0.03}}))
    with pytest.raises(ValueError, match="is given twice"):
        redraw([out, tmp_path / "a" / ".." / "a"])


def test_the_page_says_what_subsets_and_the_search_leave_out(tmp_path):
    table = rows({"mae": {1: 0.03, 2: 0.03}})
    table.loc[(table["n_labelled"] == 1) & (table["subset"] == 2), "subset"] = 0
    out = write_evaluation(tmp_path / "a", pd.concat([table, search_rows()]), pictures=0)
    pool = [f"q{i}" for i in range(8)]
    (out / "split.json").write_text(json.dumps({"pool": pool, "validation": ["v"], "test": ["t"]}))
    text, _ = _check(write_report(out))
    assert "other subsets of the same pool (8 patients)" in text
    assert "At 1 labelled patient some seeds drew the same labelled patients" in text
    limits = " ".join(json.loads((out / "report.json").read_text())["limits"])
    assert "At 2 and 4 labelled patients a subset is more than a fifth of the pool of 8" in limits
    assert "4 further labelled patients" in limits and "is in no interval and no p-value" in limits


def test_runs_are_drawn(tmp_path):
    for name, slope in (("one", 1.0), ("two", 0.5)):
        (tmp_path / name).mkdir()
        lines = [{"step": s, "loss": slope / s, "lr": 0.01, "time/step": 0.1} for s in (10, 20, 30)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / name / "recipe.yaml").write_text("run: {steps: 30}\n")
    pages = redraw([tmp_path / "one", tmp_path / "two"])
    assert [p.parent.name for p in pages] == ["one", "two", "comparison"]
    text, tags = _check(pages[-1])
    assert "0.03333" in text and "0.01667" in text and "time/step" not in text and "svg" in tags


def test_neither_kind_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither an evaluation"):
        redraw([tmp_path])
