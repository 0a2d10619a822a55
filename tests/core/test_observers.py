"""Observers: they measure what they say, warn in words, and leave the run as it is."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssl3d import checkpoint
from ssl3d.config import ConfigError
from ssl3d.data.format import LabelInfo
from ssl3d.data.store import open_store
from ssl3d.data.write import build_index, write_volume
from ssl3d.log import read_metrics
from ssl3d.observers.collapse import RANK, Collapse, measures
from ssl3d.observers.probe import SCORE, score
from ssl3d.testing.small_store import write_small
from ssl3d.train import train


@pytest.mark.parametrize("n,c,rank", [(64, 8, 3), (40, 60, 5), (64, 8, 8)])
def test_the_effective_rank_is_the_number_of_equal_directions(n, c, rank):
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(n, rank)) - 0)
    left -= left.mean(axis=0)
    left, _ = np.linalg.qr(left)  # orthonormal and centred: all singular values are 1
    right, _ = np.linalg.qr(rng.normal(size=(c, rank)))
    seen = measures(torch.from_numpy(left @ right.T))
    assert seen[RANK] == pytest.approx(rank, abs=1e-6)


def test_measures_of_one_point_and_of_all_directions():
    same = measures(torch.ones(32, 16) * torch.linspace(1, 2, 16) + 1e-9 * torch.randn(32, 16))
    assert same[RANK] == 0
    assert same["collapse/std"] < 1e-6
    assert same["collapse/uniformity"] == pytest.approx(0, abs=1e-6)
    free = measures(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)))
    assert free[RANK] > 15.9
    assert free["collapse/std"] == pytest.approx(1, abs=0.02)


def test_uniformity_is_the_published_formula():
    z = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit = (z / z.norm(dim=1, keepdim=True)).numpy()
    pairs = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(unit) for b in unit[i + 1 :]]
    assert measures(z)["collapse/uniformity"] == pytest.approx(np.log(np.mean(pairs)))


def test_a_collapse_is_told_once_and_after_a_resume_not_again(tmp_path):
    metrics, said = SimpleNamespace(path=tmp_path / "metrics.jsonl"), list[str]()
    training = SimpleNamespace(metrics=metrics, step=1200, warn=said.append)
    observer = Collapse(100, training)
    for rank in (61.0, 40.0, 3.0, 2.5, 30.0):
        observer._tell(training, rank)
    assert said[0] == "effective rank of the embeddings fell from 61 to 3 at step 1,200: collapsed"
    assert said[1] == "effective rank of the embeddings is 30 again at step 1,200"
    assert len(said) == 2
    metrics.path.write_text("".join(json.dumps({"step": i, RANK: r}) + "\n" for i, r in enumerate((61.0, 3.0))))
    resumed = Collapse(100, training)
    resumed._tell(training, 3.0)
    assert len(said) == 2


def test_the_probes_score_is_the_mean_recall():
    rng = np.random.default_rng(0)
    y, test_y = (np.repeat([0, 1, 3], [300, 200, 20]) for _ in range(2))
    clear = rng.normal(size=(520, 4)) + 20 * np.eye(4)[y]
    test = rng.normal(size=(520, 4)) + 20 * np.eye(4)[test_y]
    assert score(clear, y, test, test_y) == 1
    assert score(clear, y, rng.permutation(test), test_y) == pytest.approx(1 / 3, abs=0.12)
    assert score(clear[:300], y[:300], test, test_y) == pytest.approx(1 / 3), "one class seen: the others are missed"
    assert score(np.ones_like(clear), y, np.ones_like(test), test_y) == pytest.approx(1 / 3)


@pytest.fixture
def labelled(tmp_path):
    """A store of six patients whose bright block is labelled."""
    root = write_small(tmp_path / "labelled.zarr", seed=3)
    store = open_store(root)
    for row in range(len(store)):
        name, attributes = store.volume_id(row), store.attributes(row)
        image = store.read(row, (0, 0, 0), store.shape(row)[1:])
        label = np.zeros((1, *image.shape[1:]), np.uint8)
        label[:, 5:15, 6:20, 6:20] = 1
        points = np.argwhere(label[0] == 1)[::97].tolist()
        write_volume(root, name, image, attributes, label=label, label_info=LabelInfo({1: "block"}, None, {1: points}))
    build_index(root)
    return root


WATCH = ["run.collapse_every=2", "probe.every=2", "probe.regions=4", "run.log_every=4"]


def test_a_probed_run_logs_the_curve_keeps_the_best_and_ends_with_the_same_bits(tiny, tmp_path, labelled):
    run = train(tiny(*WATCH, f"probe.store={labelled}"))
    lines = read_metrics(run / "metrics.jsonl")
    scores = {line["step"]: line[SCORE] for line in lines if SCORE in line}
    assert list(scores) == [2, 4, 6, 8] and all(0 <= s <= 1 for s in scores.values())
    assert max(scores.values()) > 0.6, "a block two deviations brighter than the rest"
    ranks = [line[RANK] for line in lines if RANK in line]
    assert len(ranks) == 4 and all(r > 0 for r in ranks)
    best = checkpoint.read(run / "checkpoints" / "best.pt")
    assert scores[best["step"]] == max(scores.values())
    plain = train(tiny(f"run.dir={tmp_path / 'plain'}"))
    a, b = (checkpoint.open_run(r)["model"] for r in (plain, run))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_patients_of_an_evaluation_are_never_probed(tiny, labelled, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"pool": ["patient0"], "test": [f"patient{i}" for i in range(1, 6)]}))
    with pytest.raises(ConfigError, match=r"probe\.store: .*1 labelled patient\(s\), a probe needs two"):
        train(tiny(f"probe.store={labelled}", f"probe.exclude={split}"))


def test_a_probe_without_labels_is_refused(tiny, tiny_store):
    with pytest.raises(ConfigError, match=r"probe\.store: no labelled volume"):
        train(tiny(f"probe.store={tiny_store}"))
