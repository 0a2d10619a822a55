"""bfloat16 only where its gradients are right."""

from __future__ import annotations

import pytest

from ssl3d import config, precision
from ssl3d.config import ConfigError


def objective(tiny, *overrides):
    recipe = tiny(*overrides)
    return config.build_task(recipe, config.build_model(recipe))


def test_depths(tiny):
    assert precision.depths(objective(tiny)) == {8, 4}


def test_every_size_that_a_task_cuts_counts():
    """DINO's local crops, 16 slices deep, have two at the coarsest scale; its global crops have eight."""
    recipe = config.load("dino_resenc_s", ["data.store=x", "task.local_size=[16,24,24]"])
    dino = config.build_task(recipe, config.build_model(recipe))
    assert dino.seen_sizes == {dino.input_size, (16, 24, 24)} and precision.FAULTY_DEPTH in precision.depths(dino)
    shallow = ["data.store=x", "task.tasks.mae.patch_size=[16,48,48]"]
    recipe = config.load("combined_mae_local_contrast_resenc_s", shallow)
    combined = config.build_task(recipe, config.build_model(recipe))
    assert {size[0] for size in combined.seen_sizes} == {16, combined.tasks["places"].input_size[0]}


def test_a_faulty_processor_falls_back_or_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision.torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    deep, shallow = objective(tiny), objective(tiny, "task.patch_size=[4,16,12]")
    for faulty in (True, False):
        monkeypatch.setattr(precision, "bf16_conv3d_is_faulty", lambda faulty=faulty: faulty)
        assert precision.choose_precision("auto", precision.depths(deep)) == "bf16-mixed"
        assert precision.choose_precision("auto", precision.depths(shallow)) == ("32-true" if faulty else "bf16-mixed")
        assert precision.choose_precision("64-true", precision.depths(shallow)) == "64-true"
    monkeypatch.setattr(precision, "bf16_conv3d_is_faulty", lambda: True)
    assert precision.choose_precision("bf16-mixed", precision.depths(deep)) == "bf16-mixed"
    with pytest.raises(ConfigError, match=r"run\.precision is bf16-mixed"):
        precision.choose_precision("bf16-mixed", precision.depths(shallow))


def test_without_instructions_float32(tiny, monkeypatch):
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(precision.torch.cpu, name, lambda: False, raising=False)
    assert precision.choose_precision("auto", precision.depths(objective(tiny))) == "32-true"
