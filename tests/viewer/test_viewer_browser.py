"""The viewer in a browser: it draws the right voxels, and keys, wheel, pointer and letters do what the page says."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from downstream import page as report
from downstream.blocks import Html, Section
from downstream.pictures import Case
from downstream.slices import scan_of
from preprocessing import convert, inspect
from ssl3d.data.phantom import write_phantom
from ssl3d.viewer import Grid, Paint, Scan, embed, equip

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHAPE = (12, 20, 16)
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title>
<style>body { width: 900px; margin: 0 }</style></head><body><main>%s</main></body></html>"""
PLAY = """<script>
const said = {};
const play = async () => {
  const frame = () => new Promise((done) => setTimeout(done, 10));
  const [root, broken] = document.querySelectorAll(".viewer");
  const until = async (held) => { for (let i = 0; i < 200 && !held(); i++) await frame(); };
  said.before = getComputedStyle(root.querySelector(".still")).display;
  root.querySelector("button").click();
  await until(() => root.querySelector("canvas[data-slice]"));
  const views = [...root.querySelectorAll(".slices canvas")], [axial, coronal, sagittal] = views;
  const slices = async () => { await frame(); return views.map((view) => Number(view.dataset.slice)); };
  const key = (view, name) => view.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  const press = async (view, name) => { key(view, name); return slices(); };
  HTMLCanvasElement.prototype.setPointerCapture = () => {}; // events of a script have no pointer
  const click = async (view, right, down) => {
    const box = view.getBoundingClientRect();
    view.dispatchEvent(new PointerEvent("pointerdown", { button: 0, clientX: box.left + right * box.width,
      clientY: box.top + down * box.height }));
    return slices();
  };
  const colour = (view, right, down) => [...view.getContext("2d").getImageData(
    Math.floor(right * view.width), Math.floor(down * view.height), 1, 1).data].slice(0, 3);
  const scroll = async (view, deltaY) => { view.dispatchEvent(new WheelEvent("wheel", { deltaY })); return slices(); };

  Object.assign(said, { ready: root.dataset.ready, after: getComputedStyle(root.querySelector(".still")).display });
  said.focus = document.activeElement === axial;
  said.start = await slices();
  said.roles = views.map((view) => [view.tabIndex, view.getAttribute("role"), view.getAttribute("aria-label")]);
  said.up = await press(axial, "ArrowUp");
  said.down = await press(coronal, "ArrowDown");
  said.home = await press(sagittal, "Home");
  said.page = await press(sagittal, "PageUp");
  said.end = await press(axial, "End");
  said.value = ["aria-valuenow", "aria-valuemax", "aria-valuetext"].map((name) => axial.getAttribute(name));
  said.wheel = await scroll(axial, 50);
  said.little = await scroll(axial, 20);
  said.click = await click(axial, 0.9 / 16, 3.5 / 20);
  said.corner = await click(coronal, 0.99, 0.01);
  said.edge = await click(sagittal, 0.01, 0.99);
  await click(axial, 7.5 / 16, 17.5 / 20);
  await press(axial, "Home");
  said.painted = colour(axial, 12.5 / 16, 10.5 / 20);
  said.readout = root.querySelector(".readout").textContent;
  key(axial, "l");
  await frame();
  said.bare = colour(axial, 12.5 / 16, 10.5 / 20);
  said.sides = [[axial, 2.5 / 16, 2.5 / 20], [axial, 2.5 / 16, 10.5 / 20], [coronal, 2.5 / 16, 1.5 / 12],
    [coronal, 2.5 / 16, 10.5 / 12], [sagittal, 2.5 / 20, 10.5 / 12]].map((place) => colour(...place)[0]);
  const [brightness, contrast] = [...root.querySelectorAll("input[type=range]")].slice(1);
  contrast.value = 254;
  contrast.dispatchEvent(new Event("input"));
  await frame();
  said.contrast = [colour(axial, 2.5 / 16, 10.5 / 20)[0], colour(axial, 12.5 / 16, 2.5 / 20)[0]];
  root.querySelector(".live button").click();
  await frame();
  said.reset = colour(axial, 2.5 / 16, 10.5 / 20)[0];
  root.querySelector(":scope > button").click();
  await frame();
  said.closed = getComputedStyle(root.querySelector(".still")).display;
  broken.querySelector("button").click();
  await until(() => !broken.querySelector("button"));
  said.broken = [broken.textContent, broken.querySelectorAll("canvas").length];
};
play().catch((error) => { said.failed = error.stack; }).then(() => {
  const result = document.createElement("pre");
  result.id = "said";
  result.textContent = JSON.stringify(said);
  document.body.append(result);
});</script></body>"""


def opened(page, fragment=""):
    """The document as it is when a page has been opened and its scripts have run."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}",
               "--window-size=1000,900", "--virtual-time-budget=20000", "--dump-dom"]  # fmt: skip
    done = subprocess.run([*command, page.as_uri() + fragment], capture_output=True, text=True, timeout=110)
    return done.stdout


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a page says of itself that was opened, played with and closed. Blocks of 2 x 1 x 1 voxels from z = 4."""
    image = np.full(SHAPE, 40, np.uint8)
    image[:, :5] = 200  # anterior
    image[6:, 5:] = 120  # superior
    label = np.zeros(SHAPE, int)
    label[:3, 8:14, 10:] = 5
    scan = Scan("some scan", image, Grid((2, 1, 1), (1.5, 3.0, 2.0), (4, 0, 0)), (40, 20, 16), {"label": label},
                [Paint(5, "left organ", "#E69F00")], start=(5, 6, 7))  # fmt: skip
    good = embed(scan, "<p>still</p>")
    altered = re.sub(r"(sum&quot;:)\d+", r"\g<1>1", good)  # as if the browser had changed what a script reads
    page = tmp_path_factory.mktemp("browser") / "page.html"
    page.write_text(equip(PAGE % (good + altered)).replace("</body>", PLAY), encoding="utf-8")
    document = opened(page)
    found = re.search(r'<pre id="said">(.*?)</pre>', document, re.DOTALL)
    assert found, document[-2000:]
    content = json.loads(html.unescape(found[1]))
    assert "failed" not in content, content
    return content


@pytest.mark.slow
def test_it_opens_over_the_still_picture_and_closes(said):
    assert (said["before"], said["after"], said["closed"]) == ("block", "none", "block")
    assert said["ready"] == "true" and said["focus"] and said["start"] == [5, 6, 7]
    assert said["roles"] == [[0, "slider", f"{name} slice of some scan"] for name in ("axial", "coronal", "sagittal")]


@pytest.mark.slow
def test_keys_and_wheel_move_the_plane_in_focus(said):
    assert said["up"] == [6, 6, 7] and said["down"] == [6, 5, 7]
    assert said["home"] == [6, 5, 0] and said["page"] == [6, 5, 10] and said["end"] == [11, 5, 10]
    assert said["value"] == ["12", "12", "z 26 (0 to 39), 39.0 mm"]  # 4 + 11 blocks of 2 voxels of 1.5 mm
    assert said["wheel"] == said["little"] == [10, 5, 10]


@pytest.mark.slow
def test_a_click_moves_the_other_planes(said):
    assert said["click"] == [10, 3, 0]
    assert said["corner"] == [11, 3, 15]  # a coronal plane: superior above, the patient's left on the right
    assert said["edge"] == [0, 0, 15]  # a sagittal one: anterior on the left


@pytest.mark.slow
def test_it_draws_the_voxels_where_they_are(said):
    assert said["sides"] == [200, 40, 120, 40, 200]
    grey, orange = 40, (0xE6, 0x9F, 0x00)
    assert said["painted"] == pytest.approx([0.55 * grey + 0.45 * c for c in orange], abs=2)
    assert said["bare"] == [40, 40, 40]
    assert said["readout"] == "voxel z 4, y 17, x 7 · z 6.0, y 51.0, x 14.0 mm from the first voxel · label: none"
    assert said["contrast"] == [0, 255] and said["reset"] == 40


@pytest.mark.slow
def test_altered_pixels_leave_the_still_picture(said):
    words, canvases = said["broken"]
    assert words == "stillNo slices to look through: this browser alters pixels that scripts read." and canvases == 0


def drawn(document):
    """(id, slices of its three planes) of the viewers that were opened."""
    found = []
    for root in re.split(r'(?=<div class="viewer)', document)[1:]:
        if 'data-ready="true"' in root:
            found.append((re.search(r'id="(viewer-\d+)"', root)[1], re.findall(r'data-slice="(\d+)"', root)))
    return found


@pytest.mark.slow
def test_an_inspected_store_opens_at_the_volume_that_is_asked_for(tmp_path):
    convert(write_phantom(tmp_path / "raw", 2), tmp_path / "s", workers=1)
    inspect(tmp_path / "s", html=tmp_path / "page.html")
    ((name, slices),) = drawn(opened(tmp_path / "page.html", "#viewer-2"))
    assert name == "viewer-2" and len(slices) == 3 and "0" not in slices
    assert drawn(opened(tmp_path / "page.html")) == []


@pytest.mark.slow
def test_a_case_of_a_report_opens(tmp_path):
    reference = np.zeros((12, 60, 50), int)
    reference[3:9, 20:30, 10:30] = 1
    image = np.random.default_rng(0).normal(size=reference.shape).astype(np.float32)
    case = Case("c", "p", image, reference, {"<b>mae": reference * 1}, (3.0, 1.0, 1.2), classes={1: "organ"})
    content = report.figure(embed(scan_of(case, ["<b>mae"]), "<p>still</p>"), "caption")
    (tmp_path / "page.html").write_text(report.page("title", [Section("Cases", [Html(content)])]), encoding="utf-8")
    document = opened(tmp_path / "page.html", "#viewer-1")
    assert drawn(document) == [("viewer-1", ["3", "20", "20"])]
    assert ">&lt;b&gt;mae</option>" in document and "&lt;b&gt;mae: organ" in document
