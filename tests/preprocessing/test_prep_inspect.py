"""inspect: the text, the ranking, and a page that needs nothing else."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from tests_prep import save, smooth

from preprocessing import convert, inspect
from preprocessing.montage import planes, png
from preprocessing.ranking import rank
from ssl3d.cli import main
from ssl3d.data.store import open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Ten ordinary scans, one of thick slices, one of few, one scan twice, a window, and two files to refuse."""
    root = tmp_path_factory.mktemp("inspect")
    for number in range(10):
        save(root / "in" / f"scan{number}.nii.gz", 2000 + smooth((24, 20, 18), number))
    save(root / "in" / "thick.nii.gz", 2000 + smooth((24, 20, 18), 20), np.diag([1, 1, 7, 1.0]))
    save(root / "in" / "few.nii.gz", 2000 + smooth((24, 20, 6), 21))
    save(root / "in" / "again.nii.gz", (2000 + smooth((24, 20, 18), 3)) * 1.7)
    window = np.clip(smooth((24, 20, 18), 22) / 3, 0, 255).astype(np.uint8)
    save(root / "in" / "window.nii.gz", window)
    save(root / "in" / "constant.nii.gz", np.full((9, 8, 7), 7.0))
    (root / "in" / "<i>empty.nii.gz").write_bytes(b"")
    convert(root / "in", root / "my store.zarr", workers=1)
    return root / "my store.zarr"


def test_the_worst_come_first_and_say_why(store):
    opened = open_store(store)
    ranked = rank(opened.index, {"again", "scan3"})
    named = {opened.volume_id(item.row): item for item in ranked}
    assert [item.score for item in ranked] == sorted((item.score for item in ranked), reverse=True)
    assert {"few", "thick"} <= {opened.volume_id(item.row) for item in ranked[:4]}
    assert "few slices" in named["few"].reasons and "outlying spacing" in named["thick"].reasons
    assert "modality unsure" in named["window"].reasons and "looks like another" in named["again"].reasons
    assert named["scan5"].reasons == [] and named["scan5"].score == 0
    assert rank(opened.index.iloc[:0], ()) == []


def test_outliers_are_told_within_a_modality(store):
    index = open_store(store).index.copy()
    index["modality"] = [["ct"] if name == "thick" else names for name, names in zip(index["id"], index["modality"])]
    thick = next(item for item in rank(index, ()) if index["id"].iloc[item.row] == "thick")
    assert "outlying spacing" not in thick.reasons  # the only CT is no outlier


def test_the_text_counts_and_names(store, capsys):
    assert main(["inspect", str(store)]) == 0
    said = capsys.readouterr().out
    assert "volumes: 14" in said and "few_slices: 1" in said and "modality_unsure: 1" in said
    assert "constant: 1 (all voxels hold one value)" in said and "empty_file: 1" in said
    assert re.search(r"again: scan3 \(correlation 1\.000\)", said)
    assert "look at first" in said


class _Page(HTMLParser):
    """Tags, attributes and text of a page; raises on tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "br", "rect", "line"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def _scans(page):
    """What the viewers of a page are made of."""
    return [json.loads(a["data-scan"]) for _, a in page.tags if "data-scan" in a]


def _voxels(packed, scan):
    """The voxels (D,H,W) of a copy, read from its tiles."""
    from matplotlib import image

    pixels = np.round(255 * image.imread(io.BytesIO(base64.b64decode(packed["png"])))).astype(int)
    (depth, height, width), across = scan["shape"], scan["columns"]
    tiles = pixels.reshape(-1, height, across, width).swapaxes(1, 2).reshape(-1, height, width)
    return tiles[:depth]


def test_the_page_is_whole_and_accessible(store, tmp_path):
    assert main(["inspect", str(store), "--html", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    page = _Page(text)
    words = " ".join(page.words)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text) and "http" not in text
    assert [tag for tag, _ in page.tags].count("script") == 1 and len(_scans(page)) == 12
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 36 and all(a["alt"] for a in images)  # three planes of twelve volumes
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) >= 12 and all(a["role"] == "img" and "median" in a["aria-label"] for a in charts)
    assert [tag for tag, _ in page.tags].count("h1") == 1 and ("html", {"lang": "en"}) in page.tags
    assert _scans(page)[0]["name"] in words and len(text) < 2_000_000
    assert "my store.zarr" in words and str(store.parent) not in text  # a page is handed on
    assert "<i>empty" in words and "<i>" not in text  # names are escaped
    assert "constant" in words and "all voxels hold one value (7)" in words
    assert words.index("few slices") < words.index("nothing found")


def test_pictures_are_upright_and_true_to_scale(tmp_path):
    array = smooth((20, 30, 12))
    array[:, :, 9:] += 4000  # bright: superior
    array[:, 20:, :] += 2000  # anterior, in RAS+
    convert(save(tmp_path / "a.nii.gz", array, np.diag([1, 1, 3.0, 1])), tmp_path / "s", spacing="keep", workers=1)
    axial, coronal, sagittal = planes(open_store(tmp_path / "s"), 0)
    assert (axial.height_mm, axial.width_mm) == (30, 20) and (coronal.height_mm, coronal.width_mm) == (36, 20)
    assert (sagittal.height_mm, sagittal.width_mm) == (36, 30)
    assert axial.picture[:10].mean() > axial.picture[10:].mean()  # rows run to Posterior
    assert coronal.picture[:3].mean() > coronal.picture[3:].mean()  # and to Inferior
    assert sagittal.picture[:, :10].mean() > sagittal.picture[:, 10:].mean()
    assert png(axial).startswith(b"\x89PNG")


def test_labels_and_unmeasured_voxels_are_coloured(tmp_path):
    from matplotlib import image

    array = smooth((20, 30, 16)) + 2000
    array[:6] = 0
    save(tmp_path / "in" / "a.nii.gz", array)
    mask = np.zeros(array.shape, np.uint8)
    mask[10:16, 10:20, 4:12] = 2
    save(tmp_path / "masks" / "a.nii.gz", mask)
    convert(tmp_path / "in", tmp_path / "s", labels=tmp_path / "masks", spacing="keep", workers=1)
    plane = planes(open_store(tmp_path / "s"), 0)[0]
    file = tmp_path / "plane.png"
    file.write_bytes(png(plane))
    colour = image.imread(file)[..., :3]
    grey = np.ptp(colour, axis=2) < 0.02
    np.testing.assert_array_equal(grey, (plane.valid == 1) & (plane.label == 0))
    blue = colour[plane.valid == 0]
    assert (blue[:, 2] > blue[:, 0]).all()


def test_the_slices_of_a_page_are_those_of_the_volume(tmp_path):
    array = smooth((44, 30, 16)) + 2000
    array[:12] = 0
    save(tmp_path / "in" / "a.nii.gz", array, np.diag([1, 1.5, 4.0, 1]))
    mask = np.zeros(array.shape, np.uint8)
    mask[20:26, 10:20, 4:12], mask[30:, 5:9, 2:] = 2, 9
    save(tmp_path / "masks" / "a.nii.gz", mask, np.diag([1, 1.5, 4.0, 1]))
    convert(tmp_path / "in", tmp_path / "s", labels=tmp_path / "masks", spacing="keep", workers=1)
    inspect(tmp_path / "s", html=tmp_path / "page.html")
    (scan,) = _scans(_Page((tmp_path / "page.html").read_text()))
    assert scan["shape"] == scan["size"] == [16, 30, 44] and scan["step"] == [1, 1, 1]
    assert scan["spacing"] == [4, 1.5, 1] and scan["origin"] == [0, 0, 0]
    store = open_store(tmp_path / "s")
    image, label = _voxels(scan["image"], scan), _voxels(scan["maps"][0], scan)
    assert [name for name, _ in scan["paints"]] == ["not measured", "class_2", "class_9"]
    for axis, plane in enumerate(planes(store, 0)):
        box = np.asarray(store.cell("foreground_box", 0)).reshape(2, 3)
        assert scan["start"] == [int(c) for c in box.mean(axis=0)]
        shown = np.take(image, scan["start"][axis], axis=axis)
        np.testing.assert_array_equal(shown[::-1] if axis else shown, (255 * plane.picture).round())
        names = np.array(["", *(name for name, _ in scan["paints"])])[np.take(label, scan["start"][axis], axis=axis)]
        given = np.where(plane.label > 0, np.char.add("class_", plane.label.astype(str)), "").astype("<U12")
        given[(plane.label == 0) & (plane.valid == 0)] = "not measured"
        np.testing.assert_array_equal(names[::-1] if axis else names, given)


def test_slices_read_in_slabs_are_those_read_at_once(tmp_path, monkeypatch):
    from preprocessing import slices
    from ssl3d import viewer

    convert(save(tmp_path / "a.nii.gz", smooth((20, 30, 25)) + 50), tmp_path / "s", spacing="keep", workers=1)
    monkeypatch.setattr(viewer.grid, "MOST_VOXELS", 3000)
    store, copies = open_store(tmp_path / "s"), []
    for slab in (1, 4, 1000):
        monkeypatch.setattr(slices, "_SLAB", slab)
        copies.append(slices.scan_of(store, 0))
    assert copies[0].grid.step == (2, 2, 2) and copies[0].image.shape == (13, 15, 10)
    for copy in copies[1:]:
        np.testing.assert_array_equal(copy.image, copies[0].image)


def test_an_empty_store_and_a_damaged_volume_can_be_inspected(store, tmp_path):
    import shutil

    convert(save(tmp_path / "in" / "c.nii.gz", np.ones((9, 8, 7))), tmp_path / "empty", workers=1)
    assert "volumes: 0" in inspect(tmp_path / "empty", html=tmp_path / "empty.html")
    assert "holds no volume" in (tmp_path / "empty.html").read_text()
    shutil.copytree(store, tmp_path / "damaged")
    shard = tmp_path / "damaged" / "volumes" / "few" / "c" / "0" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:100])
    inspect(tmp_path / "damaged", html=tmp_path / "damaged.html")
    assert "inspect --verify" in (tmp_path / "damaged.html").read_text()
    assert main(["inspect", str(tmp_path / "nowhere")]) == 1
