"""Suites are strict: every fault names its key."""

from __future__ import annotations

import pytest
from shapes_store import suite_values

from downstream.suite import SUITES, load_suite
from ssl3d.config import find, load, names
from ssl3d.schema import ConfigError


@pytest.fixture
def values(tmp_path):
    return suite_values(tmp_path / "store.zarr", tmp_path / "split.json")


def test_a_suite_is_completed_and_reads_back_equal(values):
    suite = load_suite(values, ["measures.finetune.steps=7", "measures.probe.seeds=[3,5]"])
    assert suite.measures["finetune"].steps == 7 and suite.measures["probe"].seed_numbers() == [3, 5]
    assert suite.measures["finetune"].transfer == "encoder" and suite.dataset_name == "store"
    assert load_suite(suite.to_dict()) == suite


def test_one_rate_needs_no_list(values):
    assert load_suite(values, ["measures.finetune.optim.lr=1e-3"]).measures["finetune"].optim.lr == [1e-3]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stor=x", "unknown key 'stor'; did you mean 'store'"),
        ("measures.finetune.stepz=4", "unknown key 'measures.finetune.stepz'; did you mean 'steps'"),
        ("measures.finetune.optim.lr=[]", "measures.finetune.optim.lr is"),
        ("measures.finetune.optim.lr=[0.1,0.1]", "measures.finetune.optim.lr is .* without repeats"),
        ("measures.finetune.steps=many", "measures.finetune.steps is 'many'; it must be a whole number"),
        ("measures.finetune.steps=0", "measures.finetune.steps is 0; it must be above 0"),
        ("measures.finetune.transfer=decoder", "measures.finetune.transfer is 'decoder'; it must be one of encoder"),
        ("measures.finetune.labelled_share=2", "measures.finetune.labelled_share is 2.0"),
        ("measures.probe.n_labelled=[0]", "measures.probe.n_labelled is"),
        ("measures.probe.seeds=0", "measures.probe.seeds is 0"),
        ("measures.probe.patch_size=[8,8]", "measures.probe.patch_size has 2 values; it must have 3"),
        ("metrics=[hd95]", "metrics is .* a list with dice in it"),
        ("metrics=[dice,iou]", "metrics.1 is 'iou'"),
        ("overlap=1", "overlap is 1.0; it must be at least 0 and below 1"),
        ("workers=0", "workers is 0; it must be auto or above 0"),
        ("name=null", "name is None; it must be text"),
        ("measures={}", "measures is empty"),
        ("measures.finetune.augment._target_=ssl3d.models.resenc.ResEncUNet", "measures.finetune.augment._target_"),
    ],
)
def test_faults_name_their_key(values, override, words):
    with pytest.raises(ConfigError, match=words):
        load_suite(values, [override])


def test_interpolations_follow_overrides(values):
    values["measures"]["finetune"]["steps"] = 4
    values["measures"]["probe"]["seeds"] = "${measures.finetune.steps}"
    assert load_suite(values, ["measures.finetune.steps=6"]).measures["probe"].seeds == 6


def test_an_augmentation_is_checked_at_every_depth(values):
    values["measures"]["finetune"]["augment"] = {
        "_target_": "ssl3d.augment.Compose",
        "transforms": [{"_target_": "ssl3d.augment.SpatialTransform", "rotatoin": 10}],
    }
    with pytest.raises(ConfigError, match=r"measures.finetune.augment.transforms.0.rotatoin.*did you mean 'rotation'"):
        load_suite(values)


def test_an_augmentation_stays_a_mapping(values):
    transforms = [{"_target_": "ssl3d.augment.GaussianNoise", "p": 0.3}]
    values["measures"]["finetune"]["augment"] = {"_target_": "ssl3d.augment.Compose", "transforms": transforms}
    suite = load_suite(values)
    assert suite.measures["finetune"].augment["transforms"][0]["p"] == 0.3
    assert load_suite(suite.to_dict()) == suite


def test_an_unknown_suite_names_the_nearest(tmp_path):
    with pytest.raises(FileNotFoundError, match="no suite 'hippocampos'; did you mean 'hippocampus'"):
        load_suite("hippocampos")
    with pytest.raises(FileNotFoundError, match="no suite"):
        load_suite(tmp_path / "gone.yaml")
    assert find("downstream/hippocampus", SUITES, "suite") == find("hippocampus", SUITES, "suite")


def test_what_is_no_suite_is_called_by_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="'mae_resenc_s' is a recipe, which `ssl3d train` takes, and no suite"):
        load_suite("mae_resenc_s")
    recipe, text = tmp_path / "mine.yaml", tmp_path / "notes.txt"
    recipe.write_text(find("mae_resenc_s").read_text())
    text.write_text("name: mine")
    with pytest.raises(ConfigError, match=r"mine\.yaml' is a recipe, which `ssl3d train` takes, and no suite"):
        load_suite(recipe)
    with pytest.raises(FileNotFoundError, match=r"notes\.txt' is no suite: the name of a YAML file ends in \.yaml"):
        load_suite(text)
    with pytest.raises(ConfigError, match="is a suite, which `ssl3d evaluate RUN --suite` takes, and no recipe"):
        load(find("hippocampus", SUITES, "suite"))


def test_a_split_that_is_not_set_says_what_to_write():
    with pytest.raises(ConfigError, match=r"split is not set: .*split\.json, or draw them, split='(.+)'") as refused:
        load_suite("hippocampus", ["store=x.zarr"])
    rule = str(refused.value).partition("split='")[2].rstrip("'")
    assert load_suite("hippocampus", ["store=x.zarr", f"split={rule}"]).split["validation"] == 4


def test_shipped_suites_predict_in_windows_as_trained():
    """Larger ones cost scratch 0.21 Dice in the study of the hippocampus."""
    for name in names(SUITES):
        suite = load_suite(name, ["store=a.zarr", "split=b.json"])
        for measure in suite.measures.values():
            window = getattr(measure, "window", None)
            assert window in (None, getattr(measure, "patch_size", None)), name


def test_every_shipped_suite_is_complete_but_for_the_data():
    found = names(SUITES)
    assert {"hippocampus", "phantom"} <= set(found)
    for name in found:
        with pytest.raises(ConfigError) as error:
            load_suite(name)
        left_open = {f.split()[0] for f in error.value.faults}
        assert "store" in left_open and left_open <= {"store", "split", "split.table", "split.file"}, name
        suite = load_suite(name, ["store=a.zarr", "split=b.json"])
        assert suite.name == name
        few = ("ct", "longer", "matched", "speed", "beyond", "onward", "pathology_many")
        if name in {f"study_{name}" for name in few}:
            assert all(len(measure.seed_numbers()) >= 5 for measure in suite.measures.values())
            continue  # fine-tuned at one amount, or not
        assert len(suite.measures["probe"].seed_numbers()) >= 5
        assert len(suite.measures["finetune"].n_labelled) >= 3 and len(suite.measures["finetune"].seed_numbers()) >= 3
