"""Text in figures: nothing cut off, nothing over other text, with one amount of labels, many methods and long names."""

from __future__ import annotations

import itertools

import pytest
import rich_evaluation
from matplotlib import rc_context
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from rich_evaluation import write_rich
from synthetic_evaluation import rows, write_evaluation

from downstream import drawing, lettering, page
from downstream.blocks import Chart, Table
from downstream.drawing import STYLE
from downstream.evaluation import load_evaluation
from downstream.pictures import load_case, montage
from downstream.runs import Training, draw
from downstream.sections import of_evaluation
from downstream.sections.view import View, view

LONG = {f"{name}_with_a_rather_long_name_{i}": (1, 0.05, 0.2) for i, name in enumerate(("mae", "position", "dino"))}
MANY = {f"m{'ethod' * (i % 4)}{i}": (3 if i < 2 else 1, 0.02 * i - 0.1, 0.1) for i in range(12)}
FEW = {"PositionRegression": (3, 0.07, 0.3), "MAE": (3, 0.04, 0.2)}


def charts(found: View) -> dict[str, Chart]:
    return {block.name: block for section in of_evaluation(found) for block in section.blocks
            if isinstance(block, Chart)}  # fmt: skip


def texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """What a reader sees written, and where, in pixels: as it is drawn, since axes keep more text than they show."""
    seen = []
    draw = Text.draw

    def noted(text: Text, renderer: RendererBase) -> None:
        if text.get_visible() and text.get_text().strip():
            seen.append((text.get_text(), text.get_window_extent(renderer)))
        draw(text, renderer)

    with pytest.MonkeyPatch.context() as patch, rc_context(STYLE):
        patch.setattr(Text, "draw", noted)
        FigureCanvasAgg(figure).draw()
    return seen


def check(name: str, figure: Figure) -> None:
    """Every text inside the figure and none over another, by more than the empty rim of its letters."""
    written = texts(figure)
    assert written, name
    width, height = figure.get_size_inches() * figure.dpi
    for word, box in written:
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1, (name, "cut off", word)
    for (one, a), (two, b) in itertools.combinations(written, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 2 or along < 3, (name, "overlap", one, two)


def test_text_is_broken_where_a_name_has_parts():
    name = "mae_local_contrast_resenc_0"
    assert lettering.broken(name, 9, 10) == name
    assert lettering.broken(name, 1.8, 10, bold=True) == "mae_local_\ncontrast_resenc_0"
    assert lettering.broken("PositionRegression, mask_share 0.5", 1.8, 10, bold=True).split("\n")[1] == "mask_share 0.5"
    for text in ("x" * 60, "a-" * 60, "/data/" + "y" * 40, "", "MR · Task04_Hippocampus · Anterior"):
        lines = lettering.broken(text, 1.0, 10).split("\n")
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert all(lettering.width(line, 10) <= 1.0 for line in lines)
    assert lettering.height(["one", "one\ntwo"], 10) == pytest.approx(2 * lettering.height(["one"], 10))


def test_amounts_are_written_where_there_is_room():
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    drawing.amounts_axis(axes, [1, 2, 30, 31, 32])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "", "", "32"]
    assert list(axes.get_xticks()) == [1, 2, 30, 31, 32]


def test_a_name_with_dollar_signs_is_no_formula(tmp_path):
    out = write_evaluation(tmp_path / "out", rows({"a$_b$": {2: 0.1}}, seeds=(0, 1), patients=3), pictures=0)
    assert "a$_b$" in [text for text, _ in texts(charts(view(load_evaluation(out)))["patients_finetune"].figure)]


def test_losses_of_many_runs_with_long_names(tmp_path):
    lines = ({"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5})
    names = [f"runs/a_rather_long_name_of_a_study/mae_resenc_with_another_rate_{i}" for i in range(12)]
    figure = draw([Training(tmp_path, name, lines, "", "") for name in names], names)
    check("loss", figure)
    assert set(names) <= {text for text, _ in texts(figure)}


def test_names_over_pictures_stay_in_them(tmp_path):
    arm = "mae_with_a_name_much_longer_than_its_picture_is_wide"
    out = write_evaluation(tmp_path / "out", rows({arm: {2: 0.1}}, seeds=(0,), patients=4), pictures=1)
    check("montage", montage(load_case(next((out / "cases").iterdir())), ["scratch", arm]))


def test_long_names_in_tables_can_be_broken(tmp_path):
    table = page.table(Table("t", ["arm"], [("mae_resenc_0 of a/b <c>",)]))
    assert "mae_<wbr>resenc_<wbr>0 of a/<wbr>b &lt;c&gt;" in table


@pytest.mark.parametrize(
    ("methods", "amounts"),
    [
        pytest.param(FEW, (4,), id="few, one amount"),
        pytest.param(LONG, (4,), id="long, one amount"),
        pytest.param(LONG, (1, 4), id="long, two amounts", marks=pytest.mark.slow),
        pytest.param(MANY, (4,), id="many, one amount", marks=pytest.mark.slow),
        pytest.param(MANY, (1, 2, 3, 4, 8, 16), id="many, six amounts", marks=pytest.mark.slow),
    ],
)
def test_no_text_is_cut_off_or_over_another(tmp_path, monkeypatch, methods, amounts):
    monkeypatch.setattr(rich_evaluation, "METHODS", methods)
    monkeypatch.setitem(rich_evaluation.BASE, 3, 0.73)
    out = write_rich(tmp_path / "out", amounts=amounts, seeds=2, patients=6, steps=(50, 200))
    found = charts(view(load_evaluation(out)))
    assert {"curve_finetune", "patients_probe", "targets_finetune", "learning_speed_finetune",
            "calibration_classify"} <= found.keys()  # fmt: skip
    for name, chart in found.items():
        check(name, chart.figure)
    captions = " ".join(chart.caption for chart in found.values())
    assert ("Thin lines" in captions) == (len(amounts) > 1 and any(runs > 2 for runs, *_ in methods.values()))
    assert ("Above the diagonal" in captions) == (len(amounts) > 1)
    for words in ("Bars:", "Bands:", "Band:", "Bold:"):
        assert words not in captions, "two seeds give no interval"


def test_twelve_methods_with_one_amount_of_labels(tmp_path):
    effects = {f"{name}_resenc_{i}": {4: 0.01 * i} for i, name in enumerate(["mae_local_contrast", "cuts", "jepa"] * 4)}
    table = rows(effects, seeds=(0, 1), patients=3)
    out = write_evaluation(tmp_path / "out", table[table["n_labelled"] == 4], pictures=0)
    found = charts(view(load_evaluation(out)))
    assert set(found) == {"curve_finetune", "patients_finetune", "targets_finetune"}
    for name, chart in found.items():
        check(name, chart.figure)
