"""A report with everything in it: files for a paper, numbers that are those of results.csv, several data sets."""

import csv
import json
import re
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from rich_evaluation import write_rich

from downstream import drawing
from downstream.blocks import Table
from downstream.comparison import compare
from downstream.evaluation import load_evaluation
from downstream.latex import escape, latex
from downstream.report import redraw, write_report
from downstream.results import read_results

SMALL = {"amounts": (1, 4), "seeds": 3, "patients": 6, "steps": (50, 200), "classify": False}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    found = write_rich(tmp_path_factory.mktemp("rich") / "a", **SMALL)
    write_report(found)
    return found


@pytest.fixture(scope="module")
def data(out):
    return json.loads((out / "report.json").read_text())


def test_every_figure_and_table_is_written_for_a_paper(out):
    files = {path.name for path in (out / "paper").iterdir()}
    for stem in ("curve_finetune", "labels_saved_finetune", "learning_speed_finetune", "patients_finetune",
                 "targets_finetune"):  # fmt: skip
        assert {f"{stem}.pdf", f"{stem}.svg"} <= files, stem
        assert (out / "paper" / f"{stem}.pdf").read_bytes()[:5] == b"%PDF-"
        ElementTree.parse(out / "paper" / f"{stem}.svg")
    for stem in ("scores_finetune_dice", "labels_saved_finetune", "learning_speed_finetune", "tests_probe", "patients"):
        assert {f"{stem}.tex", f"{stem}.csv"} <= files, stem


def test_latex_is_balanced_and_rectangular(out):
    tables = list((out / "paper").glob("*.tex"))
    assert len(tables) > 5
    for path in tables:
        text = path.read_text()
        plain = re.sub(r"\\[\\{}&%$#_]", "", "\n".join(text.splitlines()[1:]))
        assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
        assert text.count("\\begin{") == text.count("\\end{") == 2
        columns = len(re.search(r"begin\{tabular\}\{([lr]+)\}", text)[1])
        rows = [line for line in plain.splitlines() if "&" in line]
        assert rows and {line.count("&") for line in rows} == {columns - 1}, path.name


def test_latex_escapes_hostile_text():
    assert escape("a_b & 50 % {x}$~^\\") == r"a\_b \& 50 \% \{x\}\$\textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert escape("-0.02") == "$-$0.02" and escape("two\nlines") == "two lines"
    text = latex(Table("a_b", ["x_1", "y"], [("100 %", -1)], numbers=(1,)))
    assert "x\\_1 & y" in text and "100 \\% & $-$1" in text and "label{tab:a-b}" in text and "{lr}" in text


def test_csv_and_page_hold_the_numbers_of_the_results(out, data):
    evaluation = load_evaluation(out)
    points = {(p.measure, p.metric, p.n_labelled, p.arm): p for p in compare(read_results(out), evaluation.baselines)}
    assert len(points) == len(data["points"])
    for found in data["points"]:
        own = points[found["measure"], found["metric"], found["n_labelled"], found["arm"]]
        assert found["score"]["mean"] == pytest.approx(own.score.mean, abs=1e-12)
        if own.difference:
            assert found["difference"]["low"] == pytest.approx(own.difference.low, abs=1e-12)
    page = (out / "report.html").read_text()
    with (out / "paper" / "scores_finetune_dice.csv").open() as file:
        for row in csv.DictReader(file):
            name = row["arm"]
            assert row["mean"] == f"{points['finetune', 'dice', int(row['labelled']), name].score.mean:.3f}"
            assert f">{row['mean']}<" in page


def test_methods_are_pooled_and_their_runs_kept(data):
    arms = {p["arm"] for p in data["points"]}
    assert {"MAE", "PositionMAE", "voco", "volumefusion", "scratch"} == arms
    runs = {f"{method}-{i}" for method in ("mae", "positionmae") for i in range(3)}
    assert {p["arm"] for p in data["runs"]} == runs
    assert any("this method (MAE, 3 pre-training runs)" in line for line in data["conclusions"])
    assert any("this checkpoint (voco)" in line for line in data["conclusions"])


def test_what_is_said_of_labels_and_steps(out, data):
    page = (out / "report.html").read_text()
    assert {r["arm"] for r in data["labels_saved"]} == {"MAE", "PositionMAE", "voco", "volumefusion"}
    assert "what lies beyond the range is unknown" in page.lower() and "more than 4" in page
    assert {r["measure"] for r in data["learning_speed"]} == {"finetune"}
    assert "smallest possible" in page and "labelled subset with its seed" not in page


def test_captions_describe_what_is_drawn(out):
    page = (out / "report.html").read_text()
    for words in ("Thin lines: single pre-training runs", "Bars: 95 % intervals", "An arrow up", "Bands: 95 %",
                  "Dashed line: the mean of all. Band: its 95 % interval", "Bold: its interval"):  # fmt: skip
        assert words in page, words


def test_the_page_is_accessible_and_small(out):
    page = (out / "report.html").read_text()
    assert len(page) < 2_000_000
    assert page.count("<svg") == page.count('<svg role="img" aria-label="')
    assert 'class="skip"' in page and page.count("<nav") == 1 and "@media print" in page
    links = set(re.findall(r'href="#([^"]+)"', page)) - {"content"}
    ids = re.findall(r' id="([^"]+)"', page)
    assert links and links <= set(ids)
    assert all(f"url(#{name})" in page or f'href="#{name}"' in page or name == "content" for name in ids[:3])


def test_svg_ids_of_two_figures_are_apart():
    sources = []
    for name in ("one", "two"):
        figure = Figure()
        figure.subplots().plot([0, 1], [0, 1], marker="o")
        sources.append(drawing.inline(drawing.svg(figure, name), 4, 'a "b" <c>'))
    ids = [set(re.findall(r' id="([^"]+)"', source)) for source in sources]
    assert ids[0] and not ids[0] & ids[1]
    assert "a &quot;b&quot; &lt;c&gt;" in sources[0]


@pytest.mark.slow
def test_data_sets_stand_side_by_side_with_a_transfer_matrix(out, tmp_path):
    small = SMALL | {"amounts": (1,), "steps": (200,)}
    one = write_rich(tmp_path / "one", **small)
    other = write_rich(tmp_path / "two", dataset="Pancreas", modality="ct", seed=1, **small)
    page = redraw([one, other])[-1]
    assert page == one / "comparison" / "report.html"
    data = json.loads((page.parent / "report.json").read_text())
    assert set(data["datasets"]) == {"Hippocampus", "Pancreas"}
    assert {(r["modality"], r["dataset"]) for r in data["transfer"]} == {("MR", "Hippocampus"), ("CT", "Pancreas")}
    text = page.read_text()
    assert "Transfer matrix" in text and "CT · Pancreas · anterior" in text
    assert (page.parent / "paper" / "transfer_finetune.pdf").exists()
