"""ssl3d check: complete, build and size a recipe without data."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
from torch.utils.flop_counter import FlopCounterMode

from ssl3d import config, schema
from ssl3d.check import _kept_bytes, activation_bytes, check, on_gpu, refuse_beyond_memory, step_flops, weight_bytes
from ssl3d.config import ConfigError
from ssl3d.gpus import Gpu
from ssl3d.models.backbone import Backbone
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.vit import ViT
from ssl3d.tasks.sparse_mae import SparseMAE
from ssl3d.testing.matrix import model_node, small_task, task_classes, task_node
from ssl3d.testing.toys import make_batch


@pytest.mark.parametrize("name", config.names())
def test_every_shipped_recipe_checks(name, monkeypatch):
    monkeypatch.setattr("ssl3d.check.activation_bytes", lambda recipe, objective: 1.0)
    monkeypatch.setattr("ssl3d.check.step_flops", lambda recipe, objective: 1)  # the slow test counts both
    assert "parameters" in check(name, ["data.store=x"])


def assert_steps_can_be_counted(names):
    for name in names:
        said = check(name, ["data.store=x"], gpu="h200")
        assert float(said.split(" GiB for the backbone's activations")[0].split()[-1]) > 0, name
        assert float(said.split("FLOPs")[1].split()[0]) > 0, name


@pytest.mark.slow
def test_steps_of_each_family_can_be_counted():
    families = ["mae_primus_v2_s", "mae_resenc_s", "mae_stunet_s", "mae_vit_s", "simmim_swin_s", "voco_resenc_s"]
    assert_steps_can_be_counted(families)


@pytest.mark.acceptance
def test_steps_of_every_shipped_recipe_can_be_counted():
    assert_steps_can_be_counted(config.names())


def test_the_large_recipe():
    text = check("mae_resenc_l")
    assert "parameters   102.3" in text and "90.30 M in the encoder" in text


def test_a_step_that_no_memory_holds_is_refused_on_the_cpu(monkeypatch):
    recipe = config.load("mae_resenc_s", ["data.store=x", "task.patch_size=128"])  # 8 M voxels, about 4 GiB
    objective = config.build_task(recipe, config.build_model(recipe))
    monkeypatch.setattr("psutil.swap_memory", lambda: type("Swap", (), {"total": 0}))
    machine = type("Memory", (), {"total": 64 * 2**30})
    monkeypatch.setattr("psutil.virtual_memory", lambda: machine)
    refuse_beyond_memory(recipe, objective)
    machine.total = 2**30
    with pytest.raises(ConfigError, match=r"4 regions of 128x128x128 .* this machine has 1:"):
        refuse_beyond_memory(recipe, objective)
    small = config.load("mae_resenc_s", ["data.store=x"])
    monkeypatch.setattr("ssl3d.check.activation_bytes", None)  # nothing is counted for a small step
    refuse_beyond_memory(small, config.build_task(small, config.build_model(small)))


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


def test_activations_are_what_a_forward_pass_holds(tmp_path):
    """Resident memory between forward and backward, in a process of its own, against the count on fake tensors."""
    program = tmp_path / "measure.py"
    program.write_text(MEASURE)
    said = subprocess.run([sys.executable, "-W", "ignore", program], check=True, capture_output=True, text=True).stdout
    counted, held = map(float, said.split())
    assert counted == pytest.approx(held, rel=0.15)


MEASURE = """
import psutil, torch
from ssl3d import config
from ssl3d.check import activation_bytes
recipe = config.load("mae_resenc_s", ["task.patch_size=[64,96,80]", "run.precision=32-true"], unset=("data.store",))
task = config.build_task(recipe, config.build_model(recipe))
x = torch.rand(1, 1, 64, 96, 80)
warm = task.backbone.decode(task.backbone.encode(x[..., :32, :32, :32]))
del warm
before = psutil.Process().memory_info().rss
held = task.backbone.decode(task.backbone.encode(x))
print(activation_bytes(recipe, task), psutil.Process().memory_info().rss - before)
"""


def test_activations_count_every_input_of_a_region_and_half_in_bfloat16():
    recipe = config.load("voco_resenc_s", ["run.precision=32-true"], unset=("data.store",))
    voco = config.build_task(recipe, config.build_model(recipe))
    each = activation_bytes(recipe, voco) / voco.passes
    recipe.task["crop_size"] = [48, 24, 24]
    wider = config.build_task(recipe, config.build_model(recipe))
    assert activation_bytes(recipe, wider) / wider.passes == pytest.approx(2 * each, rel=0.02)
    recipe.run.precision = "bf16-mixed"
    assert 0.5 < activation_bytes(recipe, wider) / wider.passes / (2 * each) < 1


def test_a_gpu_fits_or_says_what_to_change(tiny):
    recipe = tiny("data.batch_size=8")
    gib = 2.0**30
    tight = Gpu("Tight", 100, 10)
    (fits, time) = on_gpu(recipe, tight, 1 * gib, 0.5 * gib, 1e12)
    assert fits == "fits         Tight: 7.0 of 10 GiB (estimate)"
    assert time.startswith("time         0.025 to 0.1 s a step") and "an estimate" in time
    for each, words in (
        (4, "34.0 of 10 GiB (estimate): set run.accumulate=4, or use 4 times as many devices"),
        (1.5, "14.0 of 10 GiB (estimate): set run.accumulate=2, or use 2 times as many devices"),
        (9, "74.0 of 10 GiB (estimate), one region alone 9.0: set run.recompute=true, or take a smaller patch or "
         "model"),
    ):  # fmt: skip
        assert on_gpu(recipe, tight, 0, each * gib, 1)[0] == f"too large    Tight: {words}"
    recipe.run.accumulate = 2
    assert on_gpu(recipe, tight, 0, 1.5 * gib, 1)[0].startswith("fits")


def test_an_unknown_gpu_is_named():
    with pytest.raises(ConfigError, match=r"--gpu is 'h10'; did you mean 'h100'\?"):
        check("mae_resenc_s", gpu="h10")
    assert "NVIDIA A100 80 GB" in check("mae_resenc_s", gpu="a100")


def test_recomputing_needs_less_memory_than_keeping():
    """The inputs of ResEnc's segments and the largest one anew, against everything that is saved."""
    kept, recomputed = (
        config.load("mae_resenc_s", [f"run.recompute={choice}", "run.precision=32-true"], unset=("data.store",))
        for choice in ("false", "true")
    )
    task = config.build_task(kept, config.build_model(kept))
    assert activation_bytes(recomputed, task) < 0.7 * activation_bytes(kept, task)


def test_sharded_weights_are_divided_among_devices():
    plain = config.load("mae_vit_b", ["run.devices=4"], unset=("data.store",))
    sharded = config.load("mae_vit_b", ["run.devices=4", "run.strategy=fsdp"], unset=("data.store",))
    task = config.build_task(plain, config.build_model(plain))
    assert weight_bytes(plain, task) / 4 < weight_bytes(sharded, task) < weight_bytes(plain, task) / 2


def test_keys_that_exclude_each_other_are_refused_before_training():
    with pytest.raises(ConfigError) as error:
        check("sparse_mae_resenc_s", ["run.strategy=fsdp", "run.channels_last=true", "run.precision=16-mixed"])
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    "overrides, names",
    [
        (["data.store=synthetic:shapse=3"], "'shapse=3' is no option of synthetic volumes"),
        (["data.store=[a.zarr,b.zarr]", "data.weights=[1]"], "data.weights has 1 values for 2 store"),
    ],
)
def test_stores_that_no_run_could_open_are_named(overrides, names):
    with pytest.raises(ConfigError, match=names):
        check("mae_resenc_s", overrides)


def test_a_trained_teacher_is_counted_at_its_own_size():
    """The continual recipe: MAE at 48 voxels alone, and what its teacher and student at 32 add."""

    def teraflops(name, *overrides):
        (line,) = (text for text in check(name, overrides).splitlines() if text.startswith("FLOPs"))
        return float(line.split()[1])

    alone, both = teraflops("mae_resenc_s"), teraflops("continual_mae_resenc_s")
    share = (32 / 48) ** 3
    assert alone * (1 + share) < both < alone * (1 + 2 * share)
    assert "1 through tasks.keep.teacher" in check("continual_mae_resenc_s")


def test_an_interpolation_follows_overrides():
    said = check("continual_mae_resenc_s", ["model.init=runs/old"])
    assert said.count("init: runs/old") == 2


def test_counting_leaves_no_network_behind():
    """Saved tensors that hold their own graph are never freed: a gigabyte for each recipe of a large network."""
    recipe = config.load("mae_resenc_s", unset=("data.store",))
    backbone = config.build_model(recipe)
    objective = config.build_task(recipe, config.build_model(recipe))
    left = weakref.ref(next(backbone.parameters()))
    assert _kept_bytes(recipe, objective, backbone, 1) > 0
    del backbone
    gc.collect()
    assert left() is None
