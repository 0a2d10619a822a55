"""The loader: the same samples in the same order whatever reads them, and an end without leftovers."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from itertools import islice

import pytest
import torch
from random_volumes import add_volume

from ssl3d.data.loader import RegionLoader
from ssl3d.data.sampling import SamplingPlan
from ssl3d.data.store import open_store
from ssl3d.data.upload import Upload, upload_to
from ssl3d.data.workers import Processes
from ssl3d.data.write import build_index, create_store
from ssl3d.regions import RegionBatch, RegionSpec

SIZE = (16, 40, 24)


def same(a: RegionBatch, b: RegionBatch) -> bool:
    def equal(x, y):
        return (x is None and y is None) or torch.equal(x.nan_to_num(-7.5), y.nan_to_num(-7.5))

    return all(equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)


@pytest.mark.parametrize("backend,workers", [("threads", 1), ("threads", 3), ("processes", 1), ("processes", 2)])
@pytest.mark.parametrize("labels", [False, True])
def test_workers_do_not_change_batches(make_store, backend, workers, labels):
    plan = SamplingPlan([open_store(make_store(labels=True, valid=True))], RegionSpec(SIZE, labels=labels), seed=1)
    expected = list(islice(RegionLoader(plan, 4, workers=0), 4))
    with RegionLoader(plan, 4, workers=workers, backend=backend) as loader:
        assert all(same(a, b) for a, b in zip(expected, islice(loader, 4), strict=True))


def collect(plan: SamplingPlan, batch_size: int, steps: int, **options) -> dict[int, RegionBatch]:
    """Every sample of `steps` steps over all ranks, by its seed."""
    found = {}
    world, accumulate = options.get("world_size", 1), options.get("accumulate", 1)
    for rank in range(world):
        with RegionLoader(plan, batch_size, rank=rank, **options) as loader:
            for batch in islice(loader, steps * accumulate):
                assert len(batch) == batch_size // (world * accumulate)
                found.update({int(batch.seed[i]): batch[i : i + 1] for i in range(len(batch))})
    return found


@pytest.mark.parametrize("crops_per_volume", [1, 4])
@pytest.mark.parametrize("options", [{"world_size": 2}, {"accumulate": 3}, {"world_size": 3, "accumulate": 2}])
def test_ranks_and_accumulation_give_the_same_samples(make_store, options, crops_per_volume):
    store, spec = open_store(make_store()), RegionSpec(SIZE, group=2)
    plan = SamplingPlan([store], spec, seed=3, crops_per_volume=crops_per_volume)
    alone = collect(plan, 12, 2, workers=0)
    spread = collect(plan, 12, 2, workers=2, **options)
    assert alone.keys() == spread.keys() and len(alone) == 24
    for seed, one in alone.items():
        other = spread[seed]
        assert torch.equal(one.image, other.image) and torch.equal(one.start, other.start)
        assert torch.equal(one.valid_mask(), other.valid_mask())


def test_a_resume_goes_on_where_the_steps_ended(make_store):
    plan = SamplingPlan([open_store(make_store())], RegionSpec(SIZE), seed=3)
    whole = list(islice(RegionLoader(plan, 4, workers=0, accumulate=2), 10))
    resumed = list(islice(RegionLoader(plan, 4, workers=1, accumulate=2, start_step=3), 4))
    assert all(same(a, b) for a, b in zip(whole[6:], resumed, strict=True))


def test_a_batch_is_what_the_store_holds(make_store):
    """Voxels, label, valid and every number, on padded regions of scaled, labelled, partly invalid volumes."""
    path = make_store(4, labels=True, valid=True, ignore=255, scale=[0.5], offset=[-3.0], targets={"age": 50.0})
    size = (50, 40, 70)
    store = open_store(path)
    plan = SamplingPlan([store], RegionSpec(size, labels=True), seed=3)
    batch = RegionLoader(plan, 6, workers=0).read(range(6))
    for i in range(6):
        sample = plan.sample(i)
        start, row = sample.start, sample.row
        inside = store.read(row, start, size, "valid")
        assert (
            batch.start[i].tolist() == list(start) and int(batch.volume[i]) == row and int(batch.seed[i]) == sample.seed
        )
        assert (batch.image[i].numpy() == store.read(row, start, size)).all()
        assert (batch.valid_mask()[i].numpy() == inside.astype(bool)).all()
        ones = [(max(0, -s), min(d, n - s)) for s, d, n in zip(start, size, store.shape(row)[1:])]
        mask = torch.zeros(size, dtype=torch.bool)
        mask[tuple(slice(a, b) for a, b in ones)] = True
        assert (batch.label[i, 0][~mask] == 255).all()
        assert (batch.label[i, 0][mask].numpy() == store.read(row, start, size, "labels")[0][mask.numpy()]).all()
        attributes = store.attributes(row)
        assert batch.slope[i].item() == 0.5 and batch.intercept[i].item() == -3.0
        assert batch.mean[i].item() == pytest.approx(store.statistics["ct"]["clipped_mean"], rel=1e-6)
        assert batch.low[i].item() == -1000 and batch.high[i].item() == 1000
        assert batch.spacing[i].tolist() == pytest.approx(attributes.spacing)
        assert batch.affine[i].tolist() == attributes.affine
        assert batch.foreground_box[i].tolist() == attributes.foreground_box
        assert batch.volume_shape[i].tolist() == list(store.shape(row)[1:])
    assert batch.target.tolist() == [[50.0]] * 6
    assert not batch.valid.all() and batch.label.dtype == torch.int64
    assert torch.isfinite(batch.normalised().image).all()


@pytest.mark.parametrize(("backend", "workers"), [("threads", 0), ("processes", 1)])
def test_where_labels_are_read_alone_what_is_not_annotated_is_not_valid(make_store, backend, workers):
    """A sparsely annotated store for Synthesis: its ignore value is no tissue."""
    store = open_store(make_store(4, labels=True, valid=True, ignore=2))
    size = (50, 40, 70)
    alone = SamplingPlan([store], RegionSpec(size, labels=True, images=False), seed=3)
    with RegionLoader(alone, 6, workers=workers, backend=backend) as loader:
        batch = next(iter(loader))
    imaged = SamplingPlan([store], RegionSpec(size, labels=True), seed=3)
    with_images = RegionLoader(imaged, 6, workers=0).read(range(6))
    assert torch.equal(batch.label, with_images.label) and (batch.label == 2).any() and not batch.image.any()
    assert torch.equal(batch.valid, with_images.valid & (batch.label != 2))
    assert (with_images.valid & (batch.label == 2)).any()


def test_valid_is_none_when_everything_is(make_store):
    plan = SamplingPlan([open_store(make_store())], RegionSpec((16, 24, 24)), seed=0)
    batch = RegionLoader(plan, 4, workers=0).read(range(4))
    assert batch.valid is None and batch.label is None and batch.target is None


def test_one_channel_or_all(tmp_path, make_store):
    root = make_store(2, channels=3, modality=["mr", "mr", "mr"])
    plan = SamplingPlan([open_store(root)], RegionSpec((16, 24, 24)), seed=0)
    every, one = RegionLoader(plan, 30, workers=0).read(range(30)), RegionLoader(plan, 30, channels="one", workers=0)
    single = one.read(range(30))
    assert every.image.shape[1] == every.mean.shape[1] == 3 and single.image.shape[1] == single.mean.shape[1] == 1
    picked = set()
    for i in range(30):
        channel = [c for c in range(3) if torch.equal(every.image[i, c], single.image[i, 0])]
        assert len(channel) == 1 and single.mean[i, 0] == every.mean[i, channel[0]]
        picked.add(channel[0])
    assert picked == {0, 1, 2}
    mixed = [open_store(root), open_store(make_store(2, name="single.zarr"))]
    plan = SamplingPlan(mixed, RegionSpec((16, 24, 24)), seed=0)
    with pytest.raises(ValueError, match=r"\[1, 3\].*data\.channels=one"):
        RegionLoader(plan, 4)
    assert RegionLoader(plan, 4, channels="one", workers=0).read(range(8)).image.shape[:2] == (8, 1)


def test_missing_targets_are_nan(tmp_path):
    root = tmp_path / "s.zarr"
    create_store(root)
    add_volume(root, "a", 0, (6, 7, 8), targets={"age": 3.0})
    add_volume(root, "b", 1, (6, 7, 8), targets={"stage": 2.0})
    build_index(root)
    plan = SamplingPlan([open_store(root)], RegionSpec((4, 4, 4)), seed=0)
    batch = RegionLoader(plan, 20, workers=0).read(range(20))
    for volume, target in zip(batch.volume, batch.target.nan_to_num(-1)):
        assert target.tolist() == ([3, -1] if volume == 0 else [-1, 2])  # sorted: age, stage


@pytest.mark.parametrize(
    "options,words",
    [
        ({"batch_size": 6, "world_size": 4}, r"data\.batch_size is 6.*take 8"),
        ({"batch_size": 6, "accumulate": 2}, r"multiple of the task's group of 2: take data\.batch_size=4"),
        ({"batch_size": 4, "channels": "some"}, r"data\.channels"),
        ({"batch_size": 4, "normalise": "zscore"}, r"data\.normalise"),
        ({"batch_size": 4, "normalise": {"low": 0, "high": 1}}, r"data\.normalise"),
    ],
)
def test_refusals(make_store, options, words):
    plan = SamplingPlan([open_store(make_store())], RegionSpec(SIZE, group=2), seed=0)
    with pytest.raises(ValueError, match=words):
        RegionLoader(plan, **options)


BACKENDS = [("threads", 0), ("threads", 2), ("processes", 2)]


@pytest.mark.parametrize("backend,workers", BACKENDS)
def test_a_readers_error_reaches_the_caller(make_store, backend, workers):
    root = make_store(1)
    (root / "volumes/volume0/c/0/0/0/0").unlink()
    plan = SamplingPlan([open_store(root)], RegionSpec(SIZE), seed=0)
    with RegionLoader(plan, 2, workers=workers, backend=backend) as loader, pytest.raises(ValueError, match="volume0"):
        next(iter(loader))


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_leaving_an_iterator_ends_its_workers(make_store, backend):
    plan = SamplingPlan([open_store(make_store())], RegionSpec(SIZE), seed=0)
    loader = RegionLoader(plan, 2, workers=2, backend=backend)
    iterator = iter(loader)
    next(iterator)
    assert readers()
    loader.close()
    assert not readers()
    iterator = iter(RegionLoader(plan, 2, workers=2, backend=backend))
    next(iterator)
    del iterator
    gc.collect()
    assert not readers()


def readers() -> list[str]:
    threads = [t.name for t in threading.enumerate() if t.name.startswith("ssl3d-reader")]
    return threads + [p.name for p in multiprocessing.active_children() if p.name.startswith("ssl3d-reader")]


def kill_workers():
    for child in multiprocessing.active_children():
        if child.name.startswith("ssl3d-reader"):
            os.kill(child.pid, signal.SIGKILL)


def test_a_lost_process_is_replaced_and_nothing_is_missing(make_store, caplog):
    plan = SamplingPlan([open_store(make_store())], RegionSpec(SIZE), seed=0)
    with RegionLoader(plan, 2, workers=2, backend="processes") as loader, RegionLoader(plan, 2, workers=0) as inline:
        for step, (batch, expected) in enumerate(zip(loader, inline)):
            assert torch.equal(batch.image, expected.image)
            if step in (2, 7):
                kill_workers()
            if step == 12:
                break
    assert "ended unexpectedly (exit code -9): another one takes its place" in caplog.text


def test_processes_that_only_die_are_reported(make_store, monkeypatch):
    plan = SamplingPlan([open_store(make_store())], RegionSpec(SIZE), seed=0)
    with RegionLoader(plan, 2, workers=1, backend="processes") as loader:
        iterator = iter(loader)
        next(iterator)
        start = Processes._start

        def start_and_kill(self, number):
            process, connection = start(self, number)
            process.kill()
            process.join()
            return process, connection

        monkeypatch.setattr(Processes, "_start", start_and_kill)
        kill_workers()
        with pytest.raises(RuntimeError, match=r"times in a row \(exit code -9\)"):
            for _ in range(20):
                next(iterator)


def damage(root, volume):
    """Turn all bytes of a volume's voxels over."""
    shard = root / "volumes" / volume / "c" / "0" / "0" / "0" / "0"
    shard.write_bytes(bytes(255 - b for b in shard.read_bytes()))


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(("backend", "workers"), [("threads", 0), ("threads", 2), ("processes", 1)])
def test_a_damaged_volume_is_skipped_only_when_asked(make_store, caplog, group, backend, workers):
    root = make_store()
    store = open_store(root)
    plan = SamplingPlan([store], RegionSpec(SIZE, group=group), seed=0)
    options = {"workers": workers, "backend": backend}
    with RegionLoader(plan, 4, workers=0) as whole:
        expected = [batch for batch, _ in zip(whole, range(6))]
    bad = int(expected[0].volume[1])
    damage(root, store.volume_id(plan.locate(bad)[1]))
    store = open_store(root)
    plan = SamplingPlan([store], RegionSpec(SIZE, group=group), seed=0)
    with RegionLoader(plan, 4, **options) as strict, pytest.raises(ValueError, match="damaged"):
        next(iter(strict))
    replaced = 0
    with RegionLoader(plan, 4, on_error="skip", **options) as loader:
        for before, batch in zip(expected, loader):
            assert bad not in batch.volume
            groups = (before.volume == bad).reshape(-1, group).any(1)
            replaced += group * int(groups.sum())
            kept = ~groups.repeat_interleave(group)
            assert torch.equal(batch.image[kept], before.image[kept])
            assert torch.equal(batch.seed, before.seed), "a replacement draws from the same seed"
            assert all(len(set(pair)) == group for pair in batch.volume.reshape(-1, group).tolist())
        assert loader.replaced == replaced > 0, "what is read ahead counts when it is handed out"
    assert caplog.text.count("data.on_error=skip") == 1, "said once a volume"


def test_when_nothing_can_be_read_skipping_ends(make_store):
    root = make_store()
    store = open_store(root)
    for row in range(len(store)):
        damage(root, store.volume_id(row))
    plan = SamplingPlan([open_store(root)], RegionSpec(SIZE), seed=0)
    with RegionLoader(plan, 2, workers=0, on_error="skip") as loader, pytest.raises(ValueError, match="damaged"):
        next(iter(loader))


def test_reading_ahead_is_bounded(make_store, monkeypatch):
    plan = SamplingPlan([open_store(make_store())], RegionSpec((4, 4, 4)), seed=0)
    begun = []
    group = plan.group
    monkeypatch.setattr(plan, "group", lambda g: (begun.append(g), group(g))[1])
    with RegionLoader(plan, 2, workers=3) as loader:
        iterator = iter(loader)
        for _ in range(5):
            next(iterator)
        assert len(begun) == 2 * (5 + loader.prefetch)


class OneAhead(Upload):
    """What a GPU's upload does, without a GPU: a batch is under way while the one before is used."""

    ahead = 1

    def __init__(self):
        self.started, self.finished = [], []

    def start(self, batch):
        self.started.append(batch.seed.tolist())
        return batch.to("cpu")

    def finish(self, batch):
        self.finished.append(batch.seed.tolist())
        return batch


def test_a_batch_is_uploaded_while_another_is_used(make_store, monkeypatch):
    """The same batches in the same order, one more begun than used; what was replaced counts when it is handed out."""
    root = make_store()
    store = open_store(root)
    damage(root, store.volume_id(1))
    plan = SamplingPlan([open_store(root)], RegionSpec(SIZE), seed=0)
    with RegionLoader(plan, 4, workers=0, on_error="skip") as loader:
        plain = [(batch, loader.replaced) for batch in islice(loader, 6)]
    upload = OneAhead()
    monkeypatch.setattr("ssl3d.data.loader.upload_to", lambda device: upload)
    with RegionLoader(plan, 4, workers=2, on_error="skip") as loader:
        for step, batch in enumerate(islice(loader, 6)):
            assert same(batch, plain[step][0]) and loader.replaced == plain[step][1]
            assert len(upload.started) == step + 2 and len(upload.finished) == step + 1
    assert upload.finished == upload.started[:6] and plain[-1][1] > 0
    assert upload_to(torch.device("cpu")).ahead == 0
