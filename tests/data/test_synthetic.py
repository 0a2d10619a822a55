"""`data.store=synthetic`: volumes from no data, the same for every worker and box, and a source like any other."""

from __future__ import annotations

import pickle
from itertools import islice

import numpy as np
import pytest
import torch

from ssl3d.data import format as fmt
from ssl3d.data.loader import RegionLoader
from ssl3d.data.near import near_duplicates, volume_table
from ssl3d.data.normalise import resolve
from ssl3d.data.sampling import SamplingPlan, split_holdout
from ssl3d.data.source import Source
from ssl3d.data.store import Store, open_store
from ssl3d.data.synthetic import SCALE, SyntheticStore, open_source
from ssl3d.regions import RegionBatch, RegionSpec

PATH, EDGE = "synthetic:volumes=6,size=40", 40
SIZE = (16, 24, 12)


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(PATH)


def test_boxes_agree_voxel_by_voxel_and_outside_is_air(source):
    for row in (0, 3):
        whole = source.read(row, (0, 0, 0), (EDGE,) * 3)
        assert whole.shape == (1, EDGE, EDGE, EDGE) and whole.dtype == np.int16 and whole.std() > 0
        assert np.array_equal(source.read(row, (5, 0, 30), (20, 33, 10)), whole[:, 5:25, :33, 30:])
        edge = source.read(row, (-4, 30, 8), (10, 20, 12))
        assert np.array_equal(edge[:, 4:, :10], whole[:, :6, 30:, 8:20])
        assert (edge[:, :4] == source.air(row)[:, None, None, None]).all() and (
            edge[:, :, 10:] == edge[0, 0, 0, 0]
        ).all()
        label = source.read(row, (0, 0, 0), (EDGE,) * 3, fmt.LABELS)
        assert np.array_equal(
            source.read(row, (5, -3, 30), (20, 13, 10), fmt.LABELS)[:, :, 3:], label[:, 5:25, :10, 30:]
        )
        assert set(np.unique(label)) <= set(source.label_info(row).classes)


def test_labels_explain_the_image(source):
    image, label = (source.read(1, (0, 0, 0), (EDGE,) * 3, kind).astype(float) for kind in (fmt.VOLUMES, fmt.LABELS))
    between = sum((label == k).sum() * (image[label == k].mean() - image.mean()) ** 2 for k in np.unique(label))
    assert between > 0.5 * ((image - image.mean()) ** 2).sum()
    for k, points in source.label_info(1).coordinates.items():
        assert k > 0 and all(label[(0, *p)] == k for p in points)


def test_volumes_differ_and_another_store_of_the_options_has_the_same(source):
    again, other = open_source(PATH), open_source(PATH + ",seed=1")
    more = open_source("synthetic:volumes=8,size=40")
    box = ((10, 10, 10), (8, 8, 8))
    assert np.array_equal(source.read(2, *box), pickle.loads(pickle.dumps(again)).read(2, *box))
    assert np.array_equal(source.read(2, *box), more.read(2, *box))
    assert not np.array_equal(source.read(2, *box), source.read(3, *box))
    assert not np.array_equal(source.read(2, *box), other.read(2, *box))
    assert set(source.column("fingerprint")) < set(more.column("fingerprint"))
    assert not set(source.column("fingerprint")) & set(other.column("fingerprint"))


def test_channels_are_looks_of_one_anatomy():
    two = open_source(PATH + ",channels=2")
    image = two.read(0, (4, 4, 4), (20, 20, 20))
    assert image.shape[0] == 2 and not np.array_equal(*image)
    assert np.array_equal(two.read(0, (4, 4, 4), (20, 20, 20), channel=1), image[1:])
    assert two.column("channels").tolist() == [2] * 6 and len(two.cell("valid_stats", 0)) == 2


def test_statistics_normalise_what_is_read(source):
    for row in range(3):
        numbers = resolve("auto", source, row)
        value = SCALE * source.read(row, (0, 0, 0), (EDGE,) * 3).astype(float).clip(0, None)
        value = value.clip(numbers["low"][0], numbers["high"][0])
        assert abs(value.mean() - numbers["mean"][0]) < 0.15 * numbers["std"][0]
        assert value.std() == pytest.approx(numbers["std"][0], rel=0.2)


def same(a: RegionBatch, b: RegionBatch) -> bool:
    def equal(x, y):
        return (x is None and y is None) or torch.equal(x.nan_to_num(-7.5), y.nan_to_num(-7.5))

    return all(equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)


@pytest.mark.parametrize("backend", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_workers_read_the_same_and_a_resume_goes_on(source, backend):
    plan = SamplingPlan([source], RegionSpec(SIZE, labels=True, labelled_share=0.5), seed=1)
    expected = list(islice(RegionLoader(plan, 4, workers=0), 3))
    with RegionLoader(plan, 4, workers=2, backend=backend) as loader:
        assert all(same(a, b) for a, b in zip(expected, islice(loader, 2), strict=False))
    with RegionLoader(plan, 4, workers=0, start_step=2) as loader:
        assert same(expected[2], next(iter(loader)))
    assert len(split_holdout([source], 0.3, 0)) == 2


def test_a_spec_without_images_reads_none(source, monkeypatch):
    plan = SamplingPlan([source], RegionSpec(SIZE, images=False, labels=True), seed=1)
    expected = RegionLoader(SamplingPlan([source], RegionSpec(SIZE, labels=True), seed=1), 2, workers=0).read([0, 1])
    monkeypatch.setattr(SyntheticStore, "_paint", None)
    batch = RegionLoader(plan, 2, workers=0).read([0, 1])
    assert (
        not batch.image.any() and torch.equal(batch.label, expected.label) and batch.normalised().image.isfinite().all()
    )


def test_it_mixes_with_a_store(make_store):
    real, made = open_store(make_store()), open_source(PATH)
    assert isinstance(real, Store) and isinstance(open_source(real.path), Store)
    plan = SamplingPlan([real, made], RegionSpec((8, 8, 8)), seed=0, weights=[1, 1])
    stores = {plan.sample(i).store for i in range(40)}
    assert stores == {0, 1}


def test_the_leak_guard_finds_nothing_of_a_patient(source, make_store):
    """They have names, so that a run remembers what it has seen, and no looks to be confused with a scan's."""
    mine, theirs = volume_table(source, range(6)), volume_table(open_store(make_store()), [0, 1])
    found, unsure = near_duplicates(mine, theirs)
    assert not found.any() and not unsure.any()
    assert set(mine["store"]) == {PATH} and mine["volume"].str.startswith("synthetic-").all()
    assert not set(mine["subject"]) & set(theirs["subject"])


@pytest.mark.parametrize("option", ["volume=5", "size=big", "size=-1", "volumes=0"])
def test_wrong_options_are_named(option):
    with pytest.raises(ValueError, match=rf"data\.store is 'synthetic:seed=3,{option}': '{option}' is no option"):
        open_source(f"synthetic:seed=3,{option}")


def test_attributes_are_those_of_the_table(source):
    found = source.attributes(4)
    assert found.spacing == source.cell("spacing", 4) and found.modality == ["other"]
    assert np.allclose(np.abs(np.array(found.affine)[:3, :3]).sum(0), found.spacing)
