"""Volume targets: kinds and classes by their values, stratified nested subsets, mistakes in one sentence, merit."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from pathology_store import volume_suite, write_data
from shapes_store import write_run

from downstream.comparison import search
from downstream.inference import pad_to, window_starts
from downstream.plan import final_cells, search_cells
from downstream.setup import prepare
from downstream.splits import labelled_subset
from downstream.suite import load_suite
from downstream.volume import CODES_FILE, mean_over_windows, volume_rows, volume_target
from downstream.volume_merit import merit, merit_name
from downstream.volume_metrics import units
from ssl3d.data.store import open_store
from ssl3d.data.write import build_index, channel_stats, create_store, write_volume
from ssl3d.schema import ConfigError
from ssl3d.testing.store import plain_attributes

TARGETS = [  # patient, targets of a volume
    ("a", {"grade": 2.0, "age": 61.5, "same": 1.0}),
    ("a", {"grade": 5.0, "age": 62.5, "same": 1.0}),
    ("b", {"grade": 2.0, "same": 1.0}),
    ("c", {"grade": 5.0, "age": 40.0, "same": 1.0}),
    ("d", {"age": 55.0}),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Volumes of 4 x 6 x 5 voxels with targets, some missing."""
    root = tmp_path_factory.mktemp("targets") / "store.zarr"
    create_store(root)
    rng = np.random.default_rng(0)
    for i, (subject, targets) in enumerate(TARGETS):
        image = rng.integers(0, 100, (1, 4, 6, 5)).astype(np.int16)
        stats = [channel_stats(image.astype(float))]
        own = {"foreground_stats": stats, "valid_stats": stats, "subject": subject, "fingerprint": f"f{i}"}
        write_volume(root, f"v{i}", image, plain_attributes(image, **own, targets=targets))
    build_index(root)
    return root


def test_a_kind_follows_from_the_values(store):
    grade, age = (volume_target(open_store(store), name) for name in ("grade", "age"))
    assert (grade.kind, grade.classes, grade.codes, grade.labels) == ("classification", ("2", "5"), (2, 5), ("2", "5"))
    assert (age.kind, age.classes, age.labels) == ("regression", (), ("value",))
    assert volume_target(open_store(store), "grade", "regression").kind == "regression"
    rows = grade.patients
    assert {p: len(r) for p, r in rows.items()} == {"a": 2, "b": 1, "c": 1}  # d has no grade
    assert {p: len(r) for p, r in age.patients.items()} == {"a": 2, "c": 1, "d": 1}
    assert [grade.truth(r) for r in rows["a"]] == [0, 1] and grade.strata() == {"a": 0, "b": 0, "c": 1}
    assert age.truth(age.patients["c"][0]) == 40.0 and age.strata() is None
    truth, weight = grade.weighted(["a", "c"])
    assert truth.tolist() == [0, 1, 1] and weight.tolist() == [0.5, 0.5, 1.0]
    assert grade.column == 1 and age.column == 0  # RegionBatch.target: sorted names


def test_names_given_to_the_conversion_are_the_classes(store, tmp_path):
    copy = tmp_path / "named.zarr"
    shutil.copytree(store, copy)
    (copy / CODES_FILE).write_text(json.dumps({"codes": {"target grade": {"mild": 2, "severe": 5}}}))
    assert volume_target(open_store(copy), "grade").classes == ("mild", "severe")
    with pytest.raises(ValueError, match=r"target_kind is regression, but 'grade' .* classes such as 'mild'"):
        volume_target(open_store(copy), "grade", "regression")


def test_mistakes_are_named(store, tmp_path):
    opened = open_store(store)
    for name, kind, words in (
        ("grad", None, "no target 'grad'; did you mean 'grade'"),
        ("same", None, "'same' .* the same value in every volume"),
        ("age", "classification", "holds values such as 61.5"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            volume_target(opened, name, kind)
        assert "\n" not in str(error.value)
    values = volume_suite(tmp_path / "a.zarr", tmp_path / "b.json")
    for change, words in (
        ("target=null", "measures.probe predicts a target of whole volumes, but target is null"),
        ("measures.finetune._target_=downstream.finetune.Finetune", "measures.finetune segments, but the suite has"),
        ("target_kind=ordinal", "target_kind is 'ordinal'"),
        ("measures.finetune.transfer=encoder+decoder", "measures.finetune.transfer .* no decoder"),
        ("measures.finetune.pooling=max", "measures.finetune.pooling is 'max'"),
        ("measures.probe.l2=0", "measures.probe.l2 is 0"),
        ("measures.neighbours.neighbours=0", "measures.neighbours.neighbours is 0"),
        ("nsd_mm=0", "nsd_mm is 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_suite(values, [change])
    assert load_suite(load_suite(values).to_dict()) == load_suite(values)


@pytest.mark.parametrize("counts", [(6, 6), (9, 3), (5, 2, 4)])
def test_subsets_nest_and_hold_every_class(counts):
    strata = {f"p{k}{i:02d}": k for k, n in enumerate(counts) for i in range(n)}
    pool, total, seen = sorted(strata), sum(counts), set()
    for subset in range(8):
        drawn = [labelled_subset(pool, n, 7, subset, strata) for n in range(1, total + 1)]
        assert drawn == [labelled_subset(pool[::-1], n, 7, subset, strata) for n in range(1, total + 1)]
        assert all(set(small) < set(large) for small, large in itertools.pairwise(drawn))
        for chosen in drawn:
            own = np.bincount([strata[p] for p in chosen], minlength=len(counts))
            if len(chosen) >= len(counts):
                assert own.min() >= 1
                fair = np.array(counts) / total * len(chosen)
                assert np.abs(own - np.maximum(fair, 1)).max() < len(counts)
        seen.add(drawn[1])
    assert len(seen) > 4


def test_the_plan_draws_both_classes_and_scores_all_volumes(tmp_path):
    data, split_file = write_data(tmp_path)
    suite = load_suite(volume_suite(data, split_file))
    context, split, arms, warnings = prepare([write_run(tmp_path / "mae")], suite, tmp_path / "out")
    assert not warnings and context.suite.target_kind == "classification" and not context.classes
    fixed = {(name, arm.name): m.grid()[0] for name, m in suite.measures.items() for arm in arms}
    cells = final_cells(context, split, arms, fixed) + search_cells(context, split, arms)
    assert len({context.key(c) for c in cells}) == len(cells) and not any(c.pictures for c in cells)
    for cell in cells:
        assert {context.strata[p] for p in cell.labelled} == {0, 1}
    content = json.loads(split_file.read_text())
    strata = context.strata
    one = [p for p in content["pool"] if strata[p] == 0]
    split_file.write_text(json.dumps(content | {"pool": one, "test": [p for p in content["test"] if strata[p] == 0]}))
    with pytest.raises(ValueError, match="no patient of the split's pool has the class '1' of target 'pathology'"):
        prepare([], load_suite(volume_suite(data, split_file, measures={"p": _probe()})), tmp_path / "out")
    split_file.write_text(json.dumps(content | {"test": [p for p in content["test"] if strata[p] == 0]}))
    *_, warnings = prepare([], load_suite(volume_suite(data, split_file, measures={"p": _probe()})), tmp_path / "out")
    assert warnings == ["No test patient has the class '1' of 'pathology': AUROC, AP and F1 have no value."]
    other = load_suite(volume_suite(data, split_file, target="lesion_share"))
    again, *_ = prepare([tmp_path / "mae"], other, tmp_path / "out")
    assert again.target.kind == "regression" and again.strata is None
    assert again.key(cells[0]) != context.key(cells[0])


def _probe() -> dict:
    target = "downstream.volume_probe.VolumeProbe"
    return {"_target_": target, "n_labelled": [1], "seeds": 1, "patch_size": [32, 40, 40]}


def test_the_mean_over_windows_is_the_mean_over_windows():
    image = torch.rand(1, 2, 9, 20, 13)
    window = (12, 8, 5)
    padded, _ = pad_to(image, window)

    def network(x):
        return torch.stack([x.amax(dim=(1, 2, 3, 4)), x[:, 0, 0, 0, 0]], dim=1)

    starts = [window_starts(n, w, 0.5) for n, w in zip(padded.shape[2:], window)]
    parts = [padded[:, :, z : z + 12, y : y + 8, x : x + 5] for z in starts[0] for y in starts[1] for x in starts[2]]
    expected = torch.cat([network(p) for p in parts]).mean(0)
    np.testing.assert_allclose(mean_over_windows(network, image, window, 0.5, "cpu"), expected, rtol=1e-6)


def _rows(truth, positive, seed=0) -> pd.DataFrame:
    rows = []
    for i, (t, p) in enumerate(zip(truth, positive)):
        about = {"step": 5, "seed": seed, "patient": f"p{i}", "case": f"c{i}"}
        rows += [about | {"label": "no", "metric": "prediction", "value": 1 - p}]
        rows += [about | {"label": "yes", "metric": "prediction", "value": p}]
        rows += [about | {"label": "value", "metric": "truth", "value": t}]
    return pd.DataFrame(rows)


def test_merit_is_the_area_or_with_few_patients_the_likelihood():
    truth, p = [0, 1] * 15, np.linspace(0.1, 0.9, 30)
    area = merit(_rows(truth, p))
    assert area == pytest.approx(np.mean([[a > b for a in p[1::2]] for b in p[::2]]))
    assert merit(_rows(truth[:4], p[:4])) == pytest.approx(
        np.mean([np.log(v if t else 1 - v) for t, v in zip(truth[:4], p[:4])])
    )
    both = pd.concat([_rows(truth, p, 0), _rows(truth, 1 - p, 1)])
    assert merit(both) == pytest.approx((area + merit(_rows(truth, 1 - p))) / 2)
    numbers = _rows([1.0, 4.0], [3.0, 3.0])
    numbers = numbers[numbers["label"] != "no"].replace({"label": {"yes": "value"}})
    assert merit(numbers) == -1.5
    assert [merit_name(r) for r in (both, _rows(truth[:4], p[:4]), numbers)] == [
        "AUROC", "log likelihood", "negative mean absolute error"
    ]  # fmt: skip


def test_the_report_shows_the_search_of_volumes_by_what_it_went_by():
    truth, p = [0, 1] * 15, np.linspace(0.1, 0.9, 30)
    good = np.where(np.array(truth) == 1, 0.9, 0.2)
    tried = {("scratch", "lr=0.001"): p, ("scratch", "lr=0.01"): good, ("mae", "lr=0.001"): good, ("mae", "lr=0.01"): p}
    about = {"split": "validation", "n_labelled": 16}
    tables = [
        _rows(truth, values).assign(arm=arm, schedule=f"finetune {choice}", **about)
        for (arm, choice), values in tried.items()
    ]
    found = search(pd.concat(tables))
    assert [(t.arm, t.choice, t.score, t.scored_by) for t in found if t.taken] == [
        ("scratch", "lr=0.01", 1.0, "AUROC"), ("mae", "lr=0.001", 1.0, "AUROC")
    ]  # fmt: skip
    assert len(found) == 4 and {t.patients for t in found} == {30}


def test_rows_read_back_as_what_was_predicted(tmp_path):
    data, split_file = write_data(tmp_path, 8)
    context, *_ = prepare([], load_suite(volume_suite(data, split_file, measures={"p": _probe()})), tmp_path / "out")
    rows = [r for p, own in context.rows.items() for row in own for r in volume_rows(context, p, row, [0.25, 0.75])]
    found = units(pd.DataFrame(rows))
    assert found.labels == ("0", "1") and found.truth.sum() == 4 and (found.prediction == [0.25, 0.75]).all()
