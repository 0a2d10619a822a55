"""What methods and networks are called: by what differs between those of a class, and by no digest if anything does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from synthetic_evaluation import rows, write_evaluation

from downstream.evaluation import load_evaluation, readable
from downstream.names import Network, in_words, method_names, network_names, shown
from downstream.report import write_report
from downstream.sections.view import view

RESENC, VIT = "ssl3d.models.resenc.ResEncUNet", "ssl3d.models.vit.ViT"
NARROW = {"features_per_stage": [8, 16, 32, 64], "n_blocks_per_stage": [1, 1, 1, 1]}


def resenc(size: str = "S", arch: dict[str, Any] | None = None, channels: int = 1, **more: Any) -> Network:
    return Network(RESENC, {"size": size, "in_channels": channels, "arch_kwargs": arch}, **more)


def vit(size: str = "tiny", patch: int = 4, **more: Any) -> Network:
    return Network(VIT, {"size": size, "in_channels": 1, "patch_size": [patch] * 3}, **more)


@pytest.mark.parametrize(
    ("networks", "names"),
    [
        ([resenc(), vit()], ["ResEncUNet", "ViT"]),
        ([resenc(), vit(), resenc(arch=NARROW)], ["ResEncUNet 16-128", "ViT", "ResEncUNet 8-64"]),
        ([vit(), vit("S")], ["ViT-tiny", "ViT-S"]),
        ([resenc("S"), resenc("M"), resenc("L")], ["ResEncUNet-S", "ResEncUNet-M", "ResEncUNet-L"]),
        ([vit(), vit(patch=8)], ["ViT, patch_size 4x4x4", "ViT, patch_size 8x8x8"]),
        ([resenc(), resenc(channels=2)], ["ResEncUNet, in_channels 1", "ResEncUNet, in_channels 2"]),
        ([vit(), vit("S"), vit("S", 8)],
         ["ViT-tiny, patch_size 4x4x4", "ViT-S, patch_size 4x4x4", "ViT-S, patch_size 8x8x8"]),
        # an architecture that is changed by hand in other ways than its width: no size would be true of it
        ([resenc(parameters=2_381_696), resenc(arch={"n_blocks_per_stage": [1] * 4}, parameters=1_900_000)],
         ["ResEncUNet, 2.38 M parameters", "ResEncUNet, 1.9 M parameters"]),
        ([Network("gone.Net", {"depths": [[1, 2]]}, digest="31c9fc00"), Network("gone.Net", digest="6e9c6200")],
         ["Net-31c9fc", "Net-6e9c62"]),
    ],
)  # fmt: skip
def test_networks(networks, names):
    assert network_names(networks) == names


def recipe(task: str = "PositionRegression", model: str = RESENC, **settings: Any) -> dict[str, Any]:
    augment = {"_target_": "ssl3d.augment.Compose",
               "transforms": [{"_target_": "ssl3d.augment.Gamma", "p": settings.pop("gamma", 0.3)}]}  # fmt: skip
    run = {"seed": 0, "dir": "runs/a", "steps": settings.pop("steps", 100)}
    optim = {"lr": settings.pop("lr", 0.01)}
    own = {"_target_": f"ssl3d.tasks.x.{task}", "patch_size": [24, 32, 24], "mask_share": 0.5, "mask_ratio": 0.6}
    return {"run": run, "optim": optim, "model": {"_target_": model}, "task": {**own, "augment": augment, **settings}}


@pytest.mark.parametrize(
    ("recipes", "names"),
    [
        ([recipe()], ["X"]),
        ([recipe(), recipe(mask_share=0.0)], ["X, mask_share 0.5", "X, mask_share 0"]),
        ([recipe(), recipe(mask_share=0.0), recipe(mask_share=0.0, mask_ratio=0.75)],
         [f"X, mask_share {share}, mask_ratio {ratio}" for share, ratio in ((0.5, 0.6), (0, 0.6), (0, 0.75))]),
        ([recipe(), recipe(mask_strategy=None)], ["X-000000", "X-000001"]),  # one is of an older version
        ([recipe(lr=0.001, mask_share=0.0), recipe()], ["X, mask_share 0", "X, mask_share 0.5"]),
        ([recipe(mask_share=0.0, mask_ratio=0.5, lr=1), recipe(mask_share=0.0, lr=2), recipe(lr=3)],
         [f"X, mask_share {share}, mask_ratio {ratio}" for share, ratio in ((0, 0.5), (0, 0.6), (0.5, 0.6))]),
        ([recipe(lr=0.001), recipe()], ["X, lr 0.001", "X, lr 0.01"]),
        ([recipe(gamma=0.5), recipe()], ["X, Gamma.p 0.5", "X, Gamma.p 0.3"]),
        ([recipe(steps=200), recipe()], ["X, steps 200", "X, steps 100"]),
        ([recipe(patch_size=(8, 8, 8)), recipe()], ["X, patch_size 8x8x8", "X, patch_size 24x32x24"]),
        ([recipe(tasks={"mae": {"weight": 1}, "fusion": {"weight": 2}}), recipe(tasks={"mae": {"weight": 1}})],
         ["X, tasks mae + fusion", "X, tasks mae"]),
        ([{**recipe(), "stopped_at": 50}, {**recipe(), "stopped_at": 100}], ["X, stopped_at 50", "X, stopped_at 100"]),
        ([{}, {}], ["X-000000", "X-000001"]),
    ],
)  # fmt: skip
def test_methods(recipes, names):
    methods = {f"X-{i:06x}": own for i, own in enumerate(recipes)}
    assert method_names(methods | {"MAE-0a1b2c": recipe()}) == dict(zip(methods, names)) | {"MAE-0a1b2c": "MAE"}


def test_seeds_and_folders_are_no_difference():
    one, two = recipe(), recipe(mask_share=0.0)
    two["run"] |= {"seed": 4, "dir": "runs/b"}
    assert list(method_names({"X-0a1b2c": one, "X-0a1b2d": two}).values()) == ["X, mask_share 0.5", "X, mask_share 0"]


def test_values_in_a_name():
    given = [0.0, 1e-4, True, None, [1, 2], (4, 4, 4), "/data/mine.zarr", "ssl3d.augment.Compose"]
    words = ["0", "0.0001", "true", "none", "1-2", "4x4x4", "mine.zarr", "Compose"]
    assert [in_words(value) for value in given] == words
    assert {in_words(value) for value in ("x" * 30, [[], 1], {})} == {""}, "none of these is short"


def test_a_digest_stands_where_two_methods_would_be_one():
    assert shown(["MAE-000001", "MAE-000002", "SimCLR-00000a", "MAE, store run-202401"]) == {
        "MAE-000001": "MAE-000001",
        "MAE-000002": "MAE-000002",
        "SimCLR-00000a": "SimCLR",
        "MAE, store run-202401": "MAE, store run-202401",
    }


def evaluation(tmp_path, old_names: bool = True):
    """Two ResEncUNets and a ViT; of the wider ResEncUNet two methods of one task with three runs each, one as ViT."""
    shares = {"position": 0.5, "plain": 0.0}
    wide, narrow = ("scratch-ResEncUNet-31c9fc", "scratch-ResEncUNet-6e9c62") if old_names else ("scratch", "scratch-b")
    baselines = {f"{name}-{i}": wide for name in shares for i in range(3)}
    baselines |= {f"vit-{i}": "scratch-ViT" for i in range(3)} | {"small": narrow}
    table = rows({arm: {2: 0.05} for arm in baselines}, seeds=(0, 1, 2), patients=4)
    table = table[table["n_labelled"] == 2]
    scratch = [table[table["arm"] == "scratch"].assign(arm=arm) for arm in (wide, narrow, "scratch-ViT")]
    table = pd.concat([*scratch, table[table["arm"] != "scratch"]], ignore_index=True)
    digests = {"position": "PositionRegression-00000a", "plain": "PositionRegression-00000b",
               "vit": "PositionRegression-00000c", "small": "MAE-00000d"}  # fmt: skip
    table["method"] = [digests.get(arm.split("-")[0], "") for arm in table["arm"]]
    seeds = {arm: float(arm[-1]) for arm in baselines if arm[-1].isdigit()}
    table["pretrain_seed"] = table["arm"].map(seeds | {"small": 0.0})
    out = write_evaluation(tmp_path / "out", table, pictures=1)
    networks = {wide: resenc(), narrow: resenc(arch=NARROW), "scratch-ViT": vit()}
    arms = {arm: {"baseline": arm, "digest": "d", "architecture": {"target": n.target, "kwargs": n.kwargs}}
            for arm, n in networks.items()}  # fmt: skip
    arms |= {arm: {"run": f"runs/{arm}", "baseline": baseline,
                   "recipe": recipe(mask_share=shares.get(arm.split("-")[0], 0.5))}
             for arm, baseline in baselines.items()}  # fmt: skip
    (out / "arms.json").write_text(json.dumps(arms))
    return out


def test_a_report_calls_networks_and_methods_by_what_differs(tmp_path):
    out = evaluation(tmp_path)
    write_report(out)
    data = json.loads((out / "report.json").read_text())
    wide, narrow = "scratch-ResEncUNet 16-128", "scratch-ResEncUNet 8-64"
    assert {p["arm"]: p["baseline"] for p in data["points"]} == {
        wide: wide, narrow: narrow, "scratch-ViT": "scratch-ViT", "small": narrow,
        "PositionRegression, mask_share 0.5": wide, "PositionRegression, mask_share 0": wide,
        "PositionRegression": "scratch-ViT",
    }  # fmt: skip
    text = (out / "report.html").read_text()
    for words in ("Fine-tuning, ResEncUNet 8-64", "scratch, ResEncUNet 16-128",
                  "scratch, ResEncUNet 16-128 0.",  # a picture's caption
                  "this method (PositionRegression, mask_share 0, 3 pre-training runs)"):  # fmt: skip
        assert words in text, words
    assert "31c9fc" not in text and "00000" not in text


def test_merged_evaluations_get_names_of_their_networks(tmp_path):
    found = readable(load_evaluation(evaluation(tmp_path, old_names=False)))
    assert found.renamed == {"scratch": "scratch-ResEncUNet 16-128", "scratch-b": "scratch-ResEncUNet 8-64"}
    assert set(found.renamed.values()) <= set(found.results["arm"]) | set(found.arms)
    assert set(found.baselines.values()) == {*found.renamed.values(), "scratch-ViT"}


def test_equal_methods_of_two_networks_are_told_apart_by_them(tmp_path):
    out = evaluation(tmp_path)
    arms = json.loads((out / "arms.json").read_text())
    for i in range(3):
        del arms[f"plain-{i}"]  # and so compared with a scratch arm that there is not
    (out / "arms.json").write_text(json.dumps(arms))
    results = pd.read_csv(out / "results.csv", keep_default_na=False)
    results[~results["arm"].str.startswith("plain")].to_csv(out / "results.csv", index=False)
    found = {p.arm for p in view(load_evaluation(out)).points}
    assert {"PositionRegression, ResEncUNet 16-128", "PositionRegression, ViT"} <= found


def test_a_method_has_one_name_on_a_page_of_several_data_sets(tmp_path):
    one = load_evaluation(evaluation(tmp_path))
    other = replace(one, results=one.results[~one.results["arm"].str.startswith("plain")])
    alone, beside = readable(other), readable(other, [one, other])
    assert "PositionRegression" in set(alone.results.loc[alone.results["arm"] == "position-0", "method"])
    assert set(beside.results.loc[beside.results["arm"] == "position-0", "method"]) == {
        "PositionRegression, mask_share 0.5"
    }


def test_scratch_arms_of_one_network_keep_their_names(tmp_path):
    out = evaluation(tmp_path)
    arms = json.loads((out / "arms.json").read_text())
    for arm in ("scratch-ResEncUNet-6e9c62", "scratch-ViT"):
        arms[arm]["architecture"] = arms["scratch-ResEncUNet-31c9fc"]["architecture"]
    (out / "arms.json").write_text(json.dumps(arms))
    found = readable(load_evaluation(out))
    assert found.renamed == {} and set(found.arms) == set(arms)
