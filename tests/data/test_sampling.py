"""Sampling: a pure function of the index, uniform over subjects, regions where they must lie, and clear refusals."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from random_volumes import SHAPES, add_volume

from ssl3d.data.sampling import SamplingPlan, split_holdout
from ssl3d.data.store import open_store
from ssl3d.data.subjects import hash_subject
from ssl3d.data.write import build_index, create_store
from ssl3d.regions import RegionSpec

SIZE = (16, 40, 24)


def small_store(path, subjects, **options):
    """One volume for each entry of `subjects`: (subject, session) or subject."""
    create_store(path)
    for i, subject in enumerate(subjects):
        name, session = subject if isinstance(subject, tuple) else (subject, "1")
        add_volume(path, f"v{i:03d}", i, (6, 7, 8), subject=name, session=session, **options)
    build_index(path)
    return open_store(path)


def test_samples_are_a_pure_function_of_seed_and_index(make_store):
    store = open_store(make_store())
    plan, again = (SamplingPlan([store], RegionSpec(SIZE, group=2), seed=5) for _ in range(2))
    forward = [plan.sample(i) for i in range(40)]
    assert forward == [again.sample(i) for i in reversed(range(40))][::-1]
    assert forward != [SamplingPlan([store], RegionSpec(SIZE, group=2), seed=6).sample(i) for i in range(40)]
    assert [s.number for s in forward] == list(range(40)) and len({s.seed for s in forward}) == 40
    assert all(plan.group(g) == forward[2 * g : 2 * g + 2] for g in range(20))


def test_subjects_then_sessions_then_volumes_are_uniform(tmp_path):
    """One subject with 30 scans does not swamp two with one; its two sessions weigh the same."""
    fmri = [("many", "a")] * 28 + [("many", "b")] * 2
    store = small_store(tmp_path / "s.zarr", [*fmri, "one", "two"])
    plan = SamplingPlan([store], RegionSpec((4, 4, 4)), seed=0)
    drawn = [plan.sample(i).row for i in range(6000)]
    frame = store.index
    by_subject = Counter(frame["subject"][row] for row in drawn)
    assert all(abs(n / 6000 - 1 / 3) < 0.03 for n in by_subject.values()) and len(by_subject) == 3
    by_session = Counter(frame["session"][row] for row in drawn if frame["subject"][row] == "many")
    assert abs(by_session["a"] / by_subject["many"] - 0.5) < 0.05
    assert len(set(drawn)) == 32


def test_stores_are_drawn_by_weight(tmp_path):
    stores = [small_store(tmp_path / f"{i}.zarr", [f"{i}-{k}" for k in range(n)]) for i, n in enumerate((1, 3))]

    def share(weights):
        plan = SamplingPlan(stores, RegionSpec((4, 4, 4)), seed=0, weights=weights)
        return np.mean([plan.sample(i).store for i in range(3000)])

    assert share([0.8, 0.2]) == pytest.approx(0.2, abs=0.03)
    assert share(None) == pytest.approx(0.75, abs=0.03)  # by subjects
    assert share([0, 1]) == 1
    for wrong in ([1], [-1, 2], [0, 0]):
        with pytest.raises(ValueError, match=r"data\.weights"):
            share(wrong)
    with pytest.raises(ValueError, match="groups of 2"):
        SamplingPlan(stores, RegionSpec((4, 4, 4), group=2), seed=0, weights=[1, 0])


def test_modalities_are_drawn_alike_and_within_each_its_stores_by_weight(tmp_path):
    """Nine CTs and a store of three MRs with one channel; another MR has two, and is no modality of its own."""
    ct = small_store(tmp_path / "ct.zarr", [f"c{k}" for k in range(9)], modality=["ct"])
    mr = small_store(tmp_path / "mr.zarr", [f"m{k}" for k in range(3)], modality=["mr"])
    two = small_store(tmp_path / "two.zarr", ["t0"], modality=["mr", "mr"], channels=2)

    def shares(**options):
        plan = SamplingPlan([ct, mr, two], RegionSpec((4, 4, 4)), seed=0, balance="modality", **options)
        return np.bincount([plan.sample(i).store for i in range(4000)], minlength=3) / 4000

    np.testing.assert_allclose(shares(), [1 / 2, 3 / 8, 1 / 8], atol=0.025)
    np.testing.assert_allclose(shares(weights=[5, 1, 3]), [1 / 2, 1 / 8, 3 / 8], atol=0.025)
    np.testing.assert_allclose(shares(crops_per_volume=4), [1 / 2, 3 / 8, 1 / 8], atol=0.025)
    np.testing.assert_allclose(shares(exclude={"t0", "m0", "m1", "m2"}), [1, 0, 0])


def test_centres_are_uniform_in_the_foreground_box(tmp_path):
    root = tmp_path / "s.zarr"
    create_store(root)
    add_volume(root, "v", 0, (60, 90, 70), foreground_box=[[20, 30, 20], [40, 60, 50]])
    build_index(root)
    plan = SamplingPlan([open_store(root)], RegionSpec((9, 11, 13)), seed=0)
    centres = np.array([plan.sample(i).start for i in range(4000)]) + (4, 5, 6)
    assert centres.min(0).tolist() == [20, 30, 20] and centres.max(0).tolist() == [39, 59, 49]
    np.testing.assert_allclose(centres.mean(0), [29.5, 44.5, 34.5], atol=0.7)
    np.testing.assert_allclose(centres.std(0), np.array([20, 30, 30]) / 12**0.5, rtol=0.05)


def test_regions_stay_inside_where_they_fit_and_are_centred_where_not(make_store):
    store = open_store(make_store())
    size = (45, 44, 60)
    plan = SamplingPlan([store], RegionSpec(size), seed=0)
    for i in range(200):
        sample = plan.sample(i)
        for s, d, n in zip(sample.start, size, SHAPES[sample.row]):
            assert 0 <= s <= n - d if n >= d else s == -((d - n) // 2)


def test_labelled_share_centres_on_classes_uniformly(make_store):
    """A class of few voxels is drawn as often as one of many; unlabelled volumes are never drawn."""
    root = make_store(3, labels=True)
    add_volume(root, "unlabelled", 9, SHAPES[0], subject="unlabelled")
    build_index(root)
    store = open_store(root)
    plan = SamplingPlan([store], RegionSpec((1, 1, 1), labels=True, labelled_share=0.6), seed=0)
    samples = [plan.sample(i) for i in range(3000)]
    classes = Counter(int(store.read(s.row, s.start, (1, 1, 1), "labels").item()) for s in samples)
    # By chance a voxel is background in 1/2, organ in 1/3 and tumour in 1/6 of cases; recorded ones: half and half.
    for value, by_chance in ((0, 1 / 2), (1, 1 / 3), (2, 1 / 6)):
        assert classes[value] / 3000 == pytest.approx(0.4 * by_chance + 0.6 * (value > 0) / 2, abs=0.04)
    assert store.volume_id(0) == "unlabelled" and plan.rows(0) == [1, 2, 3]


def test_groups_hold_distinct_volumes_of_one_modality(tmp_path):
    root = tmp_path / "s.zarr"
    create_store(root)
    for i in range(9):
        add_volume(root, f"v{i}", i, (6, 7, 8), subject=f"p{i % 4}", modality=["ct" if i < 5 else "mr"])
    add_volume(root, "pet", 10, (6, 7, 8), subject="p9", modality=["pet"])
    build_index(root)
    store = open_store(root)
    plan = SamplingPlan([store], RegionSpec((4, 4, 4), group=4, same_modality=True), seed=0)
    modality = [m[0] for m in store.index["modality"]]
    kinds = set()
    for g in range(200):
        rows = [s.row for s in plan.group(g)]
        assert len(set(rows)) == 4
        kinds.add(frozenset(modality[r] for r in rows))
    assert kinds == {frozenset({"ct"}), frozenset({"mr"})}  # one PET is no group of four
    assert all(
        len({s.row for s in SamplingPlan([store], RegionSpec((4, 4, 4), group=10), 0).group(g)}) == 10 for g in range(9)
    )
    with pytest.raises(ValueError, match="no modality has more than 5"):
        SamplingPlan([store], RegionSpec((4, 4, 4), group=6, same_modality=True), seed=0)
    with pytest.raises(ValueError, match="groups of 11 distinct volumes"):
        SamplingPlan([store], RegionSpec((4, 4, 4), group=11), seed=0)


def test_few_slices_are_left_out_unless_asked_for(tmp_path):
    root = tmp_path / "s.zarr"
    create_store(root)
    add_volume(root, "thick", 0, (6, 7, 8), flags=["few_slices"])
    add_volume(root, "whole", 1, (6, 7, 8))
    build_index(root)
    store = open_store(root)
    assert SamplingPlan([store], RegionSpec((4, 4, 4)), 0).rows(0) == [1]
    assert SamplingPlan([store], RegionSpec((4, 4, 4)), 0, few_slices=True).rows(0) == [0, 1]
    with pytest.raises(ValueError, match=r"no volume of .* is left"):
        SamplingPlan([store], RegionSpec((4, 4, 4)), 0, exclude=["subject"])


def test_subjects_match_raw_and_hashed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "ssl3d").mkdir()
    key = b"0123456789abcdef0123"
    (tmp_path / "ssl3d/subject.key").write_bytes(key)
    store = small_store(tmp_path / "s.zarr", ["anna", hash_subject("bert", key), "carl"])

    def left(**options):
        return SamplingPlan([store], RegionSpec((4, 4, 4)), 0, **options).rows(0)

    assert left(exclude=["anna", "bert"]) == [2]
    assert left(include=[hash_subject("carl", key), "bert"]) == [1, 2]
    assert left(include=["anna", "bert"], exclude=[hash_subject("anna", key)]) == [1]
    with pytest.raises(ValueError, match="left to sample"):
        left(include=["nobody"])


def test_refusal_names_the_largest_usable_patch(make_store):
    store = open_store(make_store())  # the largest extents are 64, 70 and 96
    SamplingPlan([store], RegionSpec((64, 70, 96)), seed=0)  # every volume pads on some axis: fine
    with pytest.raises(ValueError, match=r"largest usable patch is \[64, 70, 96\]"):
        SamplingPlan([store], RegionSpec((64, 71, 96)), seed=0)
    with pytest.raises(ValueError, match=r"at most \[64, 70, 96\] voxels, less than the network's stride"):  # 70 < 128
        SamplingPlan([store], RegionSpec((64, 71, 96)), seed=0, multiple=(24, 128, 32))
    SamplingPlan([store], RegionSpec((90, 90, 120)), seed=0, patch_size=(60, 60, 80))  # read beyond, for augmentation


def test_holdout_is_a_share_of_subjects(tmp_path):
    store = small_store(tmp_path / "s.zarr", [f"p{i // 2}" for i in range(40)])
    held = split_holdout([store], 0.25, seed=1)
    assert len(held) == 5 and held == split_holdout([store], 0.25, seed=1) != split_holdout([store], 0.25, seed=2)
    assert len(split_holdout([store], 0.001, 0)) == 1 and split_holdout([store], 0, 0) == set()
    for wrong in (-0.1, 1.0, 0.99):
        with pytest.raises(ValueError, match=r"data\.holdout"):
            split_holdout([store], wrong, 0)


def test_a_small_volume_chosen_alone_is_padded_not_refused(make_store):
    store = open_store(make_store())
    shapes = [tuple(shape) for shape in store.column("shape").tolist()]
    smallest = min(range(len(shapes)), key=lambda row: shapes[row][0])
    size = (max(shape[0] for shape in shapes), 8, 8)
    plan = SamplingPlan([store], RegionSpec(size), 0, include={store.cell("subject", smallest)})
    assert plan.sample(0).row == smallest
    assert plan.sample(0).start[0] == -((size[0] - shapes[smallest][0]) // 2)


def test_groups_of_one_volume_have_places_of_their_own(make_store):
    store = open_store(make_store(2))
    plan = SamplingPlan([store], RegionSpec((2, 3, 2), group=4, same_volume=True), seed=0)
    groups = [plan.group(g) for g in range(40)]
    assert {s.row for group in groups for s in group} == {0, 1}
    for g, group in enumerate(groups):
        assert len({s.row for s in group}) == 1 and len({s.seed for s in group}) == 4
        assert [plan.sample(4 * g + k) for k in range(4)] == group
    assert np.mean([len({s.start for s in group}) for group in groups]) > 2


def test_crops_of_a_volume_follow_one_another(tmp_path):
    """k crops of a volume in a row, at places of their own; an epoch has every volume once, in an order of its own."""
    store = small_store(tmp_path / "s.zarr", [f"p{i}" for i in range(11)])
    plan = SamplingPlan([store], RegionSpec((2, 3, 2)), seed=4, crops_per_volume=5)
    samples = [plan.sample(i) for i in range(3 * 55)]
    visits = [samples[k : k + 5] for k in range(0, len(samples), 5)]
    assert all(len({s.volume for s in visit}) == 1 for visit in visits)
    assert np.mean([len({s.start for s in visit}) for visit in visits]) > 4
    epochs = [[visit[0].volume for visit in visits[k : k + 11]] for k in (0, 11, 22)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(11))
    assert [s.number for s in samples] == list(range(165)) and len({s.seed for s in samples}) == 165


def test_the_order_of_visits_is_a_pure_function_of_seed_and_index(make_store):
    store = open_store(make_store())
    plan, again = (SamplingPlan([store], RegionSpec(SIZE, group=2), 5, crops_per_volume=3) for _ in range(2))
    forward = [plan.sample(i) for i in range(80)]
    assert forward == [again.sample(i) for i in reversed(range(80))][::-1]
    assert forward != [
        SamplingPlan([store], RegionSpec(SIZE, group=2), 6, crops_per_volume=3).sample(i) for i in range(80)
    ]
    assert [plan.sample(i) for i in (10**9, 7, 10**9)][::2] == [again.sample(10**9)] * 2
    one = [SamplingPlan([store], RegionSpec(SIZE), 5, crops_per_volume=1).sample(i) for i in range(9)]
    assert one == [SamplingPlan([store], RegionSpec(SIZE), 5).sample(i) for i in range(9)]
    with pytest.raises(ValueError, match=r"data\.crops_per_volume is 0"):
        SamplingPlan([store], RegionSpec(SIZE), 5, crops_per_volume=0)


def test_visits_keep_the_shares_of_subjects_sessions_and_stores(tmp_path):
    """An epoch has as many visits as volumes; a subject with 30 scans does not swamp them, and a weight is a weight."""
    fmri = [("many", "a")] * 28 + [("many", "b")] * 2
    store = small_store(tmp_path / "s.zarr", [*fmri, "one", "two"])
    plan = SamplingPlan([store], RegionSpec((4, 4, 4)), seed=0, crops_per_volume=2)
    epochs = [[plan.sample(2 * (32 * e + v)).row for v in range(32)] for e in range(90)]
    name, session = store.index["subject"], store.index["session"]
    for rows in epochs:
        found = Counter(name[row] for row in rows)
        assert all(n in (10, 11) for n in found.values()) and len(found) == 3
    drawn = Counter(row for rows in epochs for row in rows)
    assert min(drawn.values()) > 0 and len(drawn) == 32
    by_session = Counter(session[row] for row in drawn.elements() if name[row] == "many")
    assert abs(by_session["a"] / by_session.total() - 0.5) < 0.02
    other = small_store(tmp_path / "o.zarr", ["x", "y"])
    weighted = SamplingPlan([store, other], RegionSpec((4, 4, 4)), 0, weights=[0.75, 0.25], crops_per_volume=2)
    shares = np.mean([weighted.sample(2 * v).store for v in range(34 * 20)])
    assert shares == pytest.approx(0.25, abs=0.002)


def test_groups_of_distinct_volumes_are_visited_together(make_store):
    store = open_store(make_store())
    plan = SamplingPlan([store], RegionSpec((2, 3, 2), group=2), seed=0, crops_per_volume=3)
    groups = [plan.group(g) for g in range(3 * 2 * 10)]
    for visit in range(20):
        volumes = [[s.volume for s in group] for group in groups[3 * visit : 3 * visit + 3]]
        assert volumes[0] == volumes[1] == volumes[2] and len(set(volumes[0])) == 2
    for epoch in range(10):  # of four volumes: two visits of two
        assert {s.volume for group in groups[6 * epoch : 6 * epoch + 6] for s in group} == {0, 1, 2, 3}
    odd = SamplingPlan([store], RegionSpec((2, 3, 2), group=3), seed=0, crops_per_volume=2)  # 4 is no multiple of 3
    assert all(len({s.volume for s in odd.group(g)}) == 3 for g in range(60))
    places = SamplingPlan([store], RegionSpec((2, 3, 2), group=3, same_volume=True), seed=0, crops_per_volume=2)
    assert [len({s.volume for g in (2 * v, 2 * v + 1) for s in places.group(g)}) for v in range(8)] == [1] * 8
    assert {places.group(2 * v)[0].volume for v in range(4)} == {0, 1, 2, 3}


def test_groups_of_one_modality_stay_so_in_visits(tmp_path):
    root = tmp_path / "s.zarr"
    create_store(root)
    for i in range(9):
        add_volume(root, f"v{i}", i, (6, 7, 8), subject=f"p{i}", modality=["ct" if i < 5 else "mr"])
    build_index(root)
    store = open_store(root)
    spec = RegionSpec((4, 4, 4), group=4, same_modality=True)
    plan = SamplingPlan([store], spec, seed=0, crops_per_volume=2)
    modality = [m[0] for m in store.index["modality"]]
    for g in range(0, 60, 2):
        rows = [s.row for s in plan.group(g)]
        assert rows == [s.row for s in plan.group(g + 1)] and len(set(rows)) == 4
        assert len({modality[row] for row in rows}) == 1
    assert {plan.group(2 * v)[0].row for v in range(9)} == set(range(9))
