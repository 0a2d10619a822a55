"""The copy of a scan that a page holds: every voxel at its place, small, and harmless whatever its names."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import zlib

import numpy as np
import pytest
from matplotlib import image

from ssl3d.viewer import LARGEST, MOST_SCANS, MOST_VOXELS, Grid, Paint, Scan, embed, equip, fit

PAGE = '<!doctype html><html lang="en"><head><title>t</title></head><body><main>{}</main></body></html>\n'


def decoded(packed, shape, columns):
    """The voxels of a packed volume, read by another PNG decoder, tile by tile."""
    picture = image.imread(io.BytesIO(base64.b64decode(packed["png"])))
    pixels = np.round(255 * picture).astype(np.uint8)
    depth, height, width = shape
    volume = np.empty(shape, np.uint8)
    for z in range(depth):
        row, column = divmod(z, columns)
        volume[z] = pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]
    assert zlib.adler32(volume.tobytes()) == packed["sum"]
    return volume


def content(page):
    """What the viewers of a page are made of."""
    return [json.loads(html.unescape(found)) for found in re.findall(r'data-scan="([^"]*)"', page)]


def scan(shape=(6, 5, 4), **changes):
    generator = np.random.default_rng(0)
    given = {
        "name": "a scan",
        "image": generator.integers(0, 256, shape, dtype=np.uint8),
        "grid": Grid((1, 1, 1), (3.0, 1.0, 1.5)),
        "size": shape,
        "maps": {"label": generator.choice([0, 3, 700, -1], shape)},
        "paints": [Paint(-1, "not measured", "#0072b2"), Paint(3, "liver", "#e69f00"), Paint(700, "rib", "#56b4e9")],
    }
    return Scan(**given | changes)


@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 40, 9), (30, 11, 64), (90, 3, 2), (5, 1, 1)])
def test_every_voxel_is_found_again(shape):
    (found,) = content(embed(scan(shape), "still"))
    given = scan(shape)
    assert found["shape"] == list(shape)
    np.testing.assert_array_equal(decoded(found["image"], shape, found["columns"]), given.image)
    indices = decoded(found["maps"][0], shape, found["columns"])
    names = np.array(["none", *(name for name, _ in found["paints"])])[indices]
    expected = {0: "none", 3: "liver", 700: "rib", -1: "not measured"}
    assert (names == np.vectorize(expected.get)(given.maps["label"])).all()


def test_blocks_are_means_and_middles():
    array = np.random.default_rng(1).integers(-1000, 1000, (7, 10, 13))
    grid = Grid((2, 3, 4), (1.0, 1.0, 1.0))
    means, centres = grid.means(array), grid.centres(array)
    assert means.shape == centres.shape == (4, 4, 4)
    for z, y, x in np.ndindex(4, 4, 4):
        block = array[2 * z : 2 * z + 2, 3 * y : 3 * y + 3, 4 * x : 4 * x + 4]
        assert means[z, y, x] == pytest.approx(block.mean(), rel=1e-5, abs=1e-3)
        assert centres[z, y, x] == array[min(2 * z, 6), min(3 * y + 1, 9), min(4 * x + 1, 12)]


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((512,) * 3, (1, 1, 1)), ((60, 512, 512), (5, 0.7, 0.7)), ((2000, 20, 20), (1, 1, 1)), ((9, 300, 9), (7, 1, 1))],
)
def test_a_copy_is_small_and_of_about_cubic_voxels(shape, spacing):
    grid = fit(shape, spacing)
    size = [math.ceil(n / step) for n, step in zip(shape, grid.step)]
    assert max(size) <= LARGEST and math.prod(size) <= MOST_VOXELS
    edges = [step * mm for step, mm in zip(grid.step, spacing)]
    coarse = [edge for edge, step in zip(edges, grid.step) if step > 1]
    assert coarse and max(coarse) < 2 * max(min(edges), max(spacing))


def test_a_small_scan_is_kept_as_it_is():
    assert fit((35, 51, 36), (1.0, 1.0, 1.0)).step == (1, 1, 1)
    assert fit((20, 100, 100), (5.0, 1.0, 1.0), (3, 4, 5)) == Grid((1, 1, 1), (5.0, 1.0, 1.0), (3, 4, 5))


def test_the_size_of_a_page_is_bounded():
    """Noise cannot be compressed: no scan is larger than this one."""
    shape = (71, 70, 70)
    assert MOST_VOXELS * 0.98 < math.prod(shape) <= MOST_VOXELS
    plain = embed(scan(shape, maps={}), "")
    assert len(plain) < 475_000 and MOST_SCANS * len(plain) < 5_700_000
    ball = np.linalg.norm(np.indices(shape) - 33.0, axis=0) < 25
    assert len(embed(scan(shape, maps={"label": ball * 3}), "")) - len(plain) < 12_000


def test_names_stay_text():
    hostile = '"><script>alert(1)</script></head></body>'
    page = equip(PAGE.format(embed(scan(name=hostile, paints=[Paint(3, hostile, "#e69f00")]), "<p>still</p>")))
    assert page.count("<script>") == page.count("</script>") == 1 and "alert(1)</script>" not in page
    assert content(page)[0]["name"] == hostile and content(page)[0]["paints"] == [[hostile, "#e69f00"]]


def test_a_page_needs_nothing_else_and_no_script_without_a_scan():
    assert equip(PAGE.format("<p>none</p>")) == PAGE.format("<p>none</p>")
    page = equip(PAGE.format(embed(scan(), "one") + embed(scan(), "two")))
    assert page.count("<script>") == page.count("<style>") == 1 and "one" in page and "two" in page
    assert "http" not in page and "import" not in page.replace("!important", "") and "url(" not in page
    assert not re.search(r"\ssrc=|\shref=|<link", page)


def test_what_cannot_be_shown():
    with pytest.raises(ValueError, match="'label' has the shape"):
        scan(maps={"label": np.zeros((2, 2, 2))})
    many = np.arange(400).reshape(20, 20, 1)
    paints = [Paint(value, str(value), "#e69f00") for value in range(1, 400)]
    (found,) = content(embed(scan((20, 20, 1), maps={"label": many}, paints=paints), ""))
    indices = decoded(found["maps"][0], (20, 20, 1), found["columns"])
    assert len(found["paints"]) == 254 and indices.max() == 254 and indices.ravel()[255] == 0
