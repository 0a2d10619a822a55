"""Arms: names, scratch, and digests that follow the weights."""

from __future__ import annotations

import pytest
import torch
from shapes_store import NETWORK, write_run

from downstream.arms import _arm_names, make_arms


def test_names_are_as_short_as_they_can_be():
    assert _arm_names(["a/mae", "b/voco"]) == ["mae", "voco"]
    assert _arm_names(["a/mae", "b/mae"]) == ["a/mae", "b/mae"]
    assert _arm_names(["x/a/mae", "x/a/mae"]) == ["mae", "mae-2"]
    assert _arm_names(["w/best.pt", "scratch"]) == ["best", "scratch (run)"]


def test_arms_and_their_order_do_not_depend_on_the_order_of_runs(tmp_path):
    wide = NETWORK | {"features_per_stage": [4, 6, 10]}
    runs = [write_run(tmp_path / "b", 1), write_run(tmp_path / "a", 2), write_run(tmp_path / "c", 3, wide)]
    arms = make_arms(runs)
    assert make_arms(reversed(runs)) == arms  # type: ignore[arg-type]
    assert [a.name for a in arms if not a.is_scratch] == ["a", "b", "c"]
    baselines = {a.name: a.baseline for a in arms}
    assert baselines["a"] == baselines["b"] != baselines["c"]  # each network has its own scratch
    assert {a.name for a in arms if a.is_scratch} == {"scratch-ResEncUNet 4-8", "scratch-ResEncUNet 4-10"}
    assert baselines["c"] == "scratch-ResEncUNet 4-10" and arms[-1].to_json()["architecture"]["channels"] == [4, 6, 10]
    only = make_arms(runs[:2])
    assert only[0].name == "scratch" and only[0].pretrain_seed is None and only[1].pretrain_seed == 2
    assert only[1].provenance["steps"] == 5 and only[1].parameters == only[0].parameters


def test_digests_follow_the_weights(tmp_path):
    one, same, other = (make_arms([write_run(tmp_path / str(i), seed)])[1] for i, seed in enumerate((1, 1, 2)))
    assert one.digest == same.digest != other.digest


def test_scratch_is_drawn_from_its_seed_and_leaves_the_global_generator_alone(tmp_path):
    scratch = make_arms([write_run(tmp_path / "mae")])[0]
    before = torch.get_rng_state()
    a, b, c = (scratch.backbone(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    name = next(n for n in a if n.endswith("conv.weight"))
    assert torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name])


def test_a_run_is_loaded_with_its_weights(tmp_path):
    arm = make_arms([write_run(tmp_path / "mae", 4)])[1]
    torch.manual_seed(4)
    from ssl3d.models.resenc import ResEncUNet

    expected = ResEncUNet("S", 1, NETWORK).state_dict()
    assert all(torch.equal(v, expected[n]) for n, v in arm.backbone(0).state_dict().items())


def test_what_is_no_run_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no checkpoint"):
        make_arms([tmp_path / "empty"])
