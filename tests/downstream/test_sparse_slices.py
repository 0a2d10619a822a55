"""Sparse annotation: which slices are drawn, and that nothing else is learnt from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapes_store import NETWORK, suite_values
from test_segmentation import batch

from downstream.finetune import recipe, run_finetune
from downstream.frozen_features import class_indices, training_voxels
from downstream.plan import final_cells
from downstream.results import read_cell
from downstream.segmentation import Segmentation
from downstream.setup import prepare
from downstream.sparse import UNLABELLED, draw_slices, on_slices, slice_mask
from downstream.suite import load_suite
from ssl3d.data.sampling import SamplingPlan
from ssl3d.models.resenc import ResEncUNet
from ssl3d.regions import RegionSpec


@pytest.fixture
def prepared(labelled_store, split_file, run_folder, tmp_path):
    values = suite_values(labelled_store, split_file, pictures=0)
    overrides = ["measures.finetune.slices=2", "measures.probe.slices=2", "measures.finetune.optim.lr=0.01"]
    context, split, arms, _ = prepare([run_folder], load_suite(values, overrides), tmp_path / "out")
    choices = {(name, arm.name): m.grid()[0] for name, m in context.suite.measures.items() for arm in arms}
    return context, [c for c in final_cells(context, split, arms, choices) if not c.arm.is_scratch]


def test_slices_are_nested_seeded_and_show_a_class(prepared):
    context, cells = prepared
    row = context.rows_of(cells[0].labelled)[0]
    axis, four = draw_slices(context, row, 4, seed=1)
    assert axis == int(np.argmax(context.store.cell("spacing", row))) == 0
    nested = [set(draw_slices(context, row, n, seed=1)[1]) for n in (1, 2, 3)]
    assert nested[0] < nested[1] < nested[2] < set(four) and len(four) == 4
    assert draw_slices(context, row, 4, seed=1) == (axis, four)
    assert len({draw_slices(context, row, 2, seed)[1] for seed in range(6)}) > 1
    target = class_indices(context, row)
    shown = np.flatnonzero((target > 0).any(axis=(1, 2)))
    assert set(four) <= set(shown.tolist())
    assert draw_slices(context, row, 1000, seed=1)[1] == tuple(shown.tolist())


def test_labels_off_the_slices_are_unknown_wherever_the_region_lies():
    b = batch(size=(8, 6, 10)).replace(start=torch.tensor([[0, -3, 5], [0, 4, 0]]), volume=torch.tensor([11, 4]))
    found = on_slices(b, {11: (1, (0, 2)), 4: (2, (3, 9, 40))}, UNLABELLED)
    assert b.label.max() <= 7  # the batch itself is left alone
    first = torch.arange(6) - 3
    known = torch.isin(first, torch.tensor([0, 2]))[None, :, None].expand(8, 6, 10)
    assert torch.equal(found.label[0, 0] != UNLABELLED, known)
    assert torch.equal(found.label[0, 0][known], b.label[0, 0][known])
    known = slice_mask((8, 6, 10), 2, (3, 9))
    assert torch.equal(found.label[1, 0] != UNLABELLED, torch.from_numpy(known).expand(8, 6, 10))


def test_the_loss_reads_the_slices_alone():
    torch.manual_seed(0)
    task = Segmentation(ResEncUNet("S", 1, NETWORK), (8, 16, 12), [3, 7], slices=[[0, 0, 2, 5], [1, 2, 7]]).eval()
    b = batch(size=(8, 16, 12)).replace(volume=torch.tensor([0, 1]))
    loss = task(b)["loss"]
    other = b.label.clone()
    outside = on_slices(b, task.slices, UNLABELLED).label == UNLABELLED
    other[outside] = 3
    assert outside.any() and torch.equal(task(b.replace(label=other))["loss"], loss)
    other[~outside] = 0
    assert not torch.equal(task(b.replace(label=other))["loss"], loss)


def test_classes_are_centred_on_in_the_slices_alone(prepared):
    context, cells = prepared
    row = context.rows_of(cells[0].labelled)[0]
    axis, slices = draw_slices(context, row, 1, seed=0)
    shape = context.store.shape(row, "labels")[1:]
    patient = context.store.cell("subject", row)
    spec = RegionSpec((1, 1, 1), labels=True, labelled_share=1.0, labelled_slices={row: (axis, slices)})
    plan = SamplingPlan([context.store], spec, 0, include=[patient])
    target = class_indices(context, row)
    starts = [plan.sample(i).start for i in range(40)]
    assert {s[axis] for s in starts} == set(slices) and all(target[s] > 0 for s in starts)
    assert len(set(starts)) > 5 and len(shape) == 3


def test_a_probe_takes_its_voxels_from_the_slices(prepared):
    context, cells = prepared
    own = [c for c in cells if c.measure == "probe"]
    measure = context.measure(own[0])
    backbone = own[0].arm.backbone(0)
    sparse = training_voxels(context, measure, backbone, own)
    for cell, voxels in zip(own, sparse):
        known = 0
        for row in context.rows_of(cell.labelled):
            axis, slices = draw_slices(context, row, 2, cell.seed)
            target = class_indices(context, row)
            known += int((slice_mask(target.shape, axis, slices) & (target > 0)).sum())
        assert 0 < (voxels.classes > 0).sum() <= known
    assert measure.title() == "Linear probe, 2 slices a volume"


@pytest.mark.slow
def test_a_sparse_training_is_scored_on_whole_volumes(prepared):
    context, cells = prepared
    cell = next(c for c in cells if c.measure == "finetune")
    task = recipe(context, context.measure(cell), cell)["task"]
    assert [s[0] for s in task["slices"]] == context.rows_of(cell.labelled) and all(len(s) == 4 for s in task["slices"])
    run_finetune(context, context.measure(cell), cell)
    table = read_cell(context.out, context.key(cell))
    assert set(table["patient"]) == set(cell.scored) and np.isfinite(table["value"]).all()
