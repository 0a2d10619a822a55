"""Recipes: every fault is named before anything heavy starts; a completed recipe reads back as itself."""

from __future__ import annotations

import copy

import pytest

from ssl3d import config
from ssl3d.config import ConfigError, find, load

RECIPE = {
    "run": {"dir": "runs/x", "steps": 10},
    "data": {"store": "my.zarr", "batch_size": 2},
    "model": {"_target_": "ssl3d.models.resenc.ResEncUNet", "size": "S"},
    "task": {
        "_target_": "ssl3d.tasks.mae.MAE",
        "patch_size": [16, 32, 24],
        "mask_block": 8,
        "augment": {"_target_": "ssl3d.augment.Compose", "transforms": [{"_target_": "ssl3d.augment.Gamma"}]},
    },
    "optim": {"lr": 1e-3, "groups": [{"match": "stem"}]},
}


def recipe() -> dict:
    return copy.deepcopy(RECIPE)


def test_completed_recipe_reads_back_equal():
    first = load(recipe())
    assert load(first.to_dict()) == first
    assert first.task["mask_ratio"] == 0.75, "defaults of the constructor are written out"
    assert first.optim.groups[0].lr_scale == 1.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.step=3", ["run.step", "did you mean 'steps'"]),
        ("task.mask_ration=0.5", ["task.mask_ration", "mask_ratio"]),
        ("task.augment.transforms.0.probability=x", ["task.augment.transforms.0.probability"]),
        ("optim.lr=fast", ["optim.lr", "a number"]),
        ("optim.lr=-1", ["optim.lr", "above 0"]),
        ("optim.name=adam", ["optim.name", "sgd", "adamw"]),
        ("run.steps=1.5", ["run.steps", "a whole number"]),
        ("run.steps=true", ["run.steps", "a whole number"]),
        ("data.batch_size=0", ["data.batch_size", "above 0"]),
        ("data.store=???", ["data.store is not set"]),
        ("data.holdout=1", ["data.holdout", "below 1"]),
        ("task.patch_size=[16,32]", ["task.patch_size"]),
        ("task._target_=ssl3d.tasks.mea.MAE", ["task._target_", "ssl3d.tasks.mea"]),
        ("task._target_=ssl3d.tasks.mae.MEA", ["MEA", "did you mean 'MAE'"]),
        ("task._target_=ssl3d.models.resenc.ResEncUNet", ["task._target_", "Objective"]),
        ("task._target_=os.system", ["task._target_", "is no Objective"]),
        ("model.sise=L", ["model.sise", "size"]),
        ("optims.lr=1", ["unknown section 'optims'", "optim"]),
        ("nonsense", ["'nonsense' is not an override"]),
        ("run.dir.x=1", ["run.dir"]),
        ("task.augment.transforms.7.p=1", ["transforms is a list of 1"]),
    ],
)
def test_a_fault_is_one_sentence_naming_the_key(override, words):
    with pytest.raises(ConfigError) as error:
        load(recipe(), [override])
    assert len(error.value.faults) == 1, error.value.faults
    for word in words:
        assert word in error.value.faults[0]


def test_a_key_of_another_section_is_named_with_its_own():
    with pytest.raises(ConfigError) as error:
        load("mae_resenc_s", ["data.store=x", "data.patch_size=16", "model.lr=1", "run.every=1"])
    assert sorted(str(error.value).splitlines()) == [
        "unknown key 'data.patch_size'; did you mean 'task.patch_size'?",
        "unknown key 'model.lr'; did you mean 'optim.lr'?",
        "unknown key 'run.every'; did you mean 'probe.every'?",
    ]


def test_all_faults_are_collected():
    with pytest.raises(ConfigError) as error:
        load(recipe(), ["run.step=3", "optim.lr=0", "model.foo=1"])
    assert len(error.value.faults) == 3


def test_out_of_range_names_the_key_when_built():
    built = load(recipe(), ["task.mask_ratio=1.5"])
    with pytest.raises(ConfigError, match=r"mask_ratio.*1\.5"):
        config.build_task(built, config.build_model(built))


def test_overrides_are_yaml_and_none_is_null():
    r = load(recipe(), ["optim.clip_norm=12", "optim.ema=None", "data.store=[a,b]", "optim.lr=1e-5", "run.seed=7"])
    assert (r.optim.clip_norm, r.optim.ema, r.data.store, r.optim.lr, r.run.seed) == (12.0, None, ["a", "b"], 1e-5, 7)


def test_unset_store_is_allowed_where_said():
    r = recipe()
    del r["data"]["store"]
    with pytest.raises(ConfigError, match=r"data\.store is not set"):
        load(r)
    assert load(r, unset=["data.store"]).data.store == ""


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(FileNotFoundError, match="did you mean 'mae_resenc_l'"):
        load("mae_resenc_ll")


def test_a_suite_to_copy_and_a_file_without_its_ending_are_named(tmp_path, monkeypatch):
    for name in ("hippocampus", "downstream/hippocampos"):
        with pytest.raises(FileNotFoundError, match="did you mean 'downstream/hippocampus'"):
            find(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'own\.yaml'"):
        find("own")
    with pytest.raises(FileNotFoundError, match=r"'xyzzy': no such file \(ssl3d recipes lists them\)"):
        find("xyzzy")


def test_broken_yaml_names_the_file(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("run: {dir: [\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load(path)


def test_subjects_of_a_split(tmp_path):
    path = tmp_path / "split.json"
    path.write_text('{"pool": ["a", "b"], "validation": ["c"], "test": ["d"]}')
    assert config.subjects(str(path), "data.include") == {"a", "b"}
    assert config.subjects(str(path), "data.exclude") == {"c", "d"}
    assert config.subjects(["x"], "data.exclude") == {"x"}
    with pytest.raises(ConfigError, match=r"data\.exclude.*missing\.json"):
        config.subjects(str(tmp_path / "missing.json"), "data.exclude")
