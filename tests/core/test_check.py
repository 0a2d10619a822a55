"""ssl3d check: complete, build and size a recipe without data."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from ssl3d import config, schema
from ssl3d.check import check, step_flops
from ssl3d.config import ConfigError
from ssl3d.models.backbone import Backbone
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.vit import ViT
from ssl3d.tasks.sparse_mae import SparseMAE
from ssl3d.testing.matrix import model_node, small_task, task_classes, task_node
from ssl3d.testing.toys import make_batch


@pytest.mark.parametrize("name", config.names())
def test_every_shipped_recipe_checks(name):
    assert "parameters" in check(name, ["data.store=x"])


def test_the_large_recipe():
    text = check("mae_resenc_l")
    assert "parameters   102.3" in text and "90.30 M in the encoder" in text


def test_all_faults_a_line_each():
    with pytest.raises(ConfigError) as error:
        check("mae_resenc_s", ["run.step=1", "optim.lr=0", "task.maskratio=1"])
    assert len(str(error.value).splitlines()) == 3


def test_flops_grow_with_the_patch(tiny):
    small, large = tiny(), tiny("task.patch_size=[16,32,24]")
    counts = [step_flops(r, config.build_task(r, config.build_model(r))) for r in (small, large)]
    assert counts[1] == 8 * counts[0]


@pytest.mark.parametrize("family", [ResEncUNet, ViT], ids=lambda c: c.__name__)
@pytest.mark.parametrize("task_class", task_classes(), ids=lambda c: c.__name__)
def test_flops_are_those_of_a_real_step(task_class, family):
    """A real step, heads included, against the count for the backbone alone: heads are small here."""
    model = model_node(family) | ({"size": "S"} if family is ViT else {})
    backbone = schema.build(schema.check_value(model, Backbone, "model")[0])
    try:
        task = small_task(task_class, backbone).train()
    except ValueError:
        pytest.skip("a pair that makes no sense")
    batch = make_batch(task.region.size, batch=2)
    with FlopCounterMode(display=False) as counter:
        task(batch)["loss"].backward()
    recipe = config.load(
        {
            "run": {"dir": "x", "steps": 1}, "data": {"store": "x", "batch_size": 2}, "optim": {"lr": 0.1},
            "model": model, "task": task_node(task_class, backbone),
        }
    )  # fmt: skip
    ratio = counter.get_total_flops() / step_flops(recipe, task)
    # What a sparse encoder saves depends on the masks; its dense network is counted.
    assert (0.2 if task_class is SparseMAE else 0.9) < ratio < 1.1


def test_crops_and_teachers_are_counted():
    one, two = check("simclr_resenc_s", ["data.store=x"]), check("voco_resenc_s", ["data.store=x"])
    assert "2 a region" in one and "a region and" in two and "through the teacher" in two
