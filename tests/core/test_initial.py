"""model.init: weights that a training starts from, of a run or of another program; recorded, and read once."""

import json
import shutil

import pandas as pd
import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from ssl3d import checkpoint, initial
from ssl3d.config import load
from ssl3d.loop import _objective
from ssl3d.models.unet3d import UNet3D
from ssl3d.tasks.distillation import Distillation
from ssl3d.tasks.mae import MAE
from ssl3d.train import train


@pytest.fixture
def published(tmp_path):
    """A checkpoint as nnU-Net writes it, of the tiny recipe's network for two channels; its folder is nobody's run."""
    torch.manual_seed(3)
    network = ResidualEncoderUNet(
        2, 2, [4, 8], nn.Conv3d, 3, [1, 2], [1, 1], 2, [1], conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )  # fmt: skip
    path = tmp_path / "elsewhere" / "checkpoint_final.pth"
    path.parent.mkdir()
    torch.save({"network_weights": network.state_dict()}, path)
    return path


class Stop(Exception):
    """Ends a training from inside."""


@pytest.fixture
def stop_in(monkeypatch):
    """stop_in(recipe, task): train until the objective's sixth forward pass, after two checkpoints."""

    def run(recipe, task=MAE):
        calls, original = [], task.forward

        def forward(self, batch, preview=False):
            calls.append(1)
            if len(calls) == 6:
                raise Stop
            return original(self, batch, preview)

        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(task, "forward", forward)
            train(recipe)

    return run


STILL = ("optim.lr=1e-12", "optim.weight_decay=0", "run.steps=1")


def test_training_starts_from_another_programs_weights_and_records_them(tiny, published, tmp_path):
    run = train(tiny(f"model.init={published}", *STILL))
    theirs = torch.load(published, weights_only=True)["network_weights"]
    ours = checkpoint.load_backbone(run).state_dict()
    name = "encoder.stages.1.blocks.0.conv1.conv.weight"
    torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)
    stem = "encoder.stem.convs.0.conv.weight"
    torch.testing.assert_close(ours[stem], theirs[stem].sum(1, keepdim=True), atol=1e-6, rtol=0)
    record = json.loads((run / initial.RECORD_FILE).read_text())
    assert record["init"] == str(published) and record["format"] == "nnU-Net ResidualEncoderUNet"
    assert len(record["digest"]) == 32 and record["data"] == "unknown"
    assert checkpoint.open_run(run)["initial_weights"] == record


def test_a_resume_never_reads_them_again(tiny, published, stop_in):
    recipe = tiny(f"model.init={published}")
    stop_in(recipe)
    shutil.rmtree(published.parent)
    assert checkpoint.open_run(train(recipe))["step"] == 8


def test_what_they_saw_stays_known_when_the_run_they_came_from_is_gone(tiny, tmp_path, stop_in):
    first = train(tiny(f"run.dir={tmp_path / 'first'}", 'data.include=["patient0"]', "run.steps=1"))
    recipe = tiny(f"model.init={first}", 'data.include=["patient1"]')
    stop_in(recipe)
    shutil.rmtree(first)
    run = train(recipe)
    assert initial.load(run).record["data"] == "known"
    assert set(initial.load(run).seen["subject"]) == {"patient0"}


def test_unknown_data_are_inherited(tiny, published, tmp_path):
    first = train(tiny(f"run.dir={tmp_path / 'first'}", f"model.init={published}", "run.steps=1"))
    second = train(tiny(f"model.init={first}", "run.steps=1"))
    assert initial.load(second).record["data"] == "unknown"


def test_a_teacher_starts_from_the_same_weights(tiny, published):
    recipe = tiny(f"model.init={published}").to_dict()
    recipe["task"] = {"_target_": "ssl3d.tasks.voco.VoCo", "crop_size": [8, 8, 8], "grid": [1, 2, 1], "hidden_dim": 8}
    task, _ = _objective(load(recipe), published.parent / "new")
    student = task.backbone.state_dict()
    assert all(torch.equal(value, student[name]) for name, value in task.teacher_backbone.state_dict().items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.arch_kwargs.features_per_stage=[4,6]", r"model\.init: .* is \(.*this model needs"),
        ("model.init=nowhere.pth", r"model\.init: there is no run or weights file 'nowhere\.pth'"),
        ("model.init_minimum=2", r"model\.init_minimum"),
    ],
)
def test_mistakes_name_the_key(tiny, published, override, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(tiny(f"model.init={published}", override))


def test_weights_of_another_network_name_the_one_they_are_of(tiny, tmp_path):
    path = tmp_path / "genesis.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in UNet3D(width=2).state_dict().items()}}, path)
    with pytest.raises(ValueError, match=r"model\.init: .*UNet3D.* set model\._target_=ssl3d\.models\.unet3d\.UNet3D"):
        train(tiny(f"model.init={path}"))


def distilled(tiny, init, *overrides):
    """The tiny recipe with Distillation in the place of MAE, from a teacher of the same network."""
    values = tiny().to_dict()
    teacher = {key: values["model"][key] for key in ("_target_", "arch_kwargs")} | {"init": init}
    values["task"] = {
        "_target_": "ssl3d.tasks.distillation.Distillation", "teacher": teacher, "patch_size": [8, 16, 12],
        "decoder": True,
    }  # fmt: skip
    return load(values, overrides)


def test_a_trained_teacher_is_filled_recorded_and_no_more_needed_to_resume(tiny, tmp_path):
    large = train(tiny(f"run.dir={tmp_path / 'large'}", 'data.include=["patient0"]', "run.steps=2"))
    recipe = distilled(tiny, str(large), 'data.include=["patient1"]', "run.steps=2")
    run = train(recipe)
    content = checkpoint.open_run(run)
    theirs = checkpoint.load_backbone(large).state_dict()
    assert all(torch.equal(content["model"][f"teacher.{name}"], value) for name, value in theirs.items())
    record = initial.load(run)
    assert (
        record is not None
        and record.record["teachers"]["task.teacher"]["init"] == str(large)
        and record.unknown() == []
    )
    assert set(record.seen["subject"]) == {"patient0"}, "what the teacher saw, the student may have learnt"
    assert set(pd.read_parquet(run / "seen.parquet")["subject"]) == {"patient0", "patient1"}


def test_a_resume_never_reads_the_teacher_again(tiny, tmp_path, stop_in):
    large = train(tiny(f"run.dir={tmp_path / 'large'}", "run.steps=1"))
    stop_in(distilled(tiny, str(large)), Distillation)
    shutil.rmtree(large)
    assert checkpoint.open_run(train(distilled(tiny, str(large))))["step"] == 8


def test_a_teacher_of_another_program_has_seen_nobody_knows_what(tiny, published):
    run = train(distilled(tiny, str(published), "run.steps=1", "task.decoder=false"))
    assert initial.load(run).unknown() == [f"{published} (nnU-Net ResidualEncoderUNet)"]


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (None, r"^task\.teacher\.init is not set: name the run or weights file"),
        ("nowhere.pth", r"^task\.teacher\.init: there is no run or weights file 'nowhere\.pth'"),
    ],
)
def test_a_teacher_without_weights_is_refused(tiny, init, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(distilled(tiny, init))


def test_a_teacher_whose_decoder_was_not_trained_is_refused_where_it_is_used(tiny, tmp_path):
    contrast = {
        "_target_": "ssl3d.tasks.simclr.SimCLR", "patch_size": [8, 16, 12], "hidden_dim": 8, "out_dim": 4,
        "augment": {
            "_target_": "ssl3d.augment.Compose", "transforms": [{"_target_": "ssl3d.augment.SpatialTransform"}],
        },
    }  # fmt: skip
    values = tiny(f"run.dir={tmp_path / 'contrast'}", "run.steps=1").to_dict() | {"task": contrast}
    encoder_only = train(load(values))
    with pytest.raises(ValueError, match=r"^task\.teacher\.init: .* holds no trained decoder: .* decoder=false"):
        train(distilled(tiny, str(encoder_only)))
    assert train(distilled(tiny, str(encoder_only), "task.decoder=false", "run.steps=1")).is_dir()
