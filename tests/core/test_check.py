"""ssl3d check: complete, build and size a recipe without data."""

from __future__ import annotations

import pytest

from ssl3d import config
from ssl3d.check import check, step_flops
from ssl3d.config import ConfigError


@pytest.mark.parametrize("name", config.names())
def test_every_shipped_recipe_checks(name):
    if name == "mae_resenc_l":
        pytest.skip("100 M parameters: test_the_large_recipe, slow")
    assert "parameters" in check(name, ["data.store=x"])


@pytest.mark.slow
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
