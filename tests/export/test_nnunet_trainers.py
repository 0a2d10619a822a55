"""The trainers written beside an export, without nnU-Net: their rates by epoch, what they hold, and the trial."""

import sys
import types

import pytest
import torch

from ssl3d.export import nnunet_primus
from ssl3d.export.nnunet import TRAINERS, build_network, export_nnunet, trial
from ssl3d.models.init import aliases
from ssl3d.models.primus import Primus
from ssl3d.models.resenc import ResEncUNet
from ssl3d.testing.backbone import randomise


class Trainer:
    """A stand-in for nnU-Net's."""

    initial_lr, weight_decay, num_epochs = 0.01, 3e-5, 1000

    def __init__(self, network):
        self.network = network
        self.log = []
        self.was_initialized = False

    def initialize(self):
        assert not self.was_initialized
        self.was_initialized = True
        self.epochs_when_initialised = self.num_epochs

    def on_train_start(self):
        self.log.append("started")

    def print_to_log_file(self, text):
        self.log.append(text)


class PrimusTrainer(Trainer):
    """A stand-in for one of nnU-Net's for Primus."""


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """loaded(text) -> a module of the folder trainers/ as nnU-Net loads it, on stand-ins for its trainers."""
    found = {
        "nnunetv2.training.nnUNetTrainer.nnUNetTrainer": {"nnUNetTrainer": Trainer},
        nnunet_primus.TRAINERS: {"nnUNet_Primus_tiny_Trainer": PrimusTrainer},
    }
    for name, classes in found.items():
        for i in range(1, name.count(".") + 2):
            part = ".".join(name.split(".")[:i])
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        sys.modules[name].__dict__.update(classes)

    def load(text):
        module = types.ModuleType("trainers")
        module.__file__ = str(tmp_path / "trainers" / "trainers.py")
        exec(text, module.__dict__)
        return module

    return load


@pytest.fixture
def trainers(loaded):
    return loaded(TRAINERS.read_text())


def rates(trainer, epochs):
    optimizer, schedule = trainer.configure_optimizers()
    found = []
    for epoch in epochs:
        schedule.step(epoch)
        found.append({group["encoder"]: group["lr"] for group in optimizer.param_groups})
    return optimizer, found


def test_warmup_grows_then_decays_to_nothing(trainers):
    _, found = rates(trainers.SSL3DWarmup(ResEncUNet("S")), [0, 24, 49, 50, 525, 999])
    for rate in found:
        assert rate[True] == rate[False]
    assert [rate[True] for rate in found[:4]] == pytest.approx([0.0002, 0.005, 0.01, 0.01])
    assert found[4][True] == pytest.approx(0.01 * 0.5**0.9)
    assert 0 < found[5][True] < 1e-4


def test_the_encoder_is_held_while_the_decoder_warms_up(trainers):
    network = ResEncUNet("S")
    optimizer, found = rates(trainers.SSL3DEncoderFirst(network), [0, 49, 50, 99, 100])
    assert found[0] == {False: pytest.approx(0.0002), True: 0.0} and found[1] == {False: pytest.approx(0.01), True: 0.0}
    assert found[2] == {False: pytest.approx(0.0002), True: pytest.approx(0.0002)}
    assert found[3][True] == found[4][True] == pytest.approx(0.01)
    held = {id(p) for group in optimizer.param_groups if group["encoder"] for p in group["params"]}
    assert held == {id(p) for name, p in network.named_parameters() if name.startswith("encoder.")}


def test_a_held_encoder_keeps_its_bits(trainers):
    network = torch.nn.ModuleDict({"encoder": torch.nn.Linear(3, 3), "decoder": torch.nn.Linear(3, 1)})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer, _ = trainers.SSL3DEncoderFirst(network).configure_optimizers()
    for _ in range(3):
        optimizer.zero_grad()
        network["decoder"](network["encoder"](torch.randn(4, 3))).sum().backward()
        optimizer.step()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("encoder.")


def test_more_warm_up_than_epochs_is_refused(trainers):
    trainer = trainers.SSL3DEncoderFirst(ResEncUNet("S"))
    trainer.num_epochs = 100
    with pytest.raises(ValueError, match="50 epochs with the encoder held and 50 of warm-up leave none of 100"):
        trainer.configure_optimizers()


def test_a_trial_is_short_and_says_what_was_loaded(loaded, backbone, tmp_path):
    export_nnunet(backbone, tmp_path)
    network = build_network(backbone.spec().architecture, 1)
    module = loaded((tmp_path / "trainers" / "ssl3d_trial.py").read_text())
    assert module.SSL3DTrial.__bases__ == (Trainer,)
    trainer = module.SSL3DTrial(network)
    trainer.on_train_start()
    assert trainer.epochs_when_initialised == trainer.num_epochs == 1 and trainer.num_iterations_per_epoch == 10
    assert "SSL3DTrial: 0 of " in trainer.log[0] and trainer.log[0].endswith("and its configuration?")
    network.load_state_dict(torch.load(tmp_path / "checkpoint.pth")["network_weights"])
    with torch.no_grad():
        network.decoder.seg_layers[0].weight += 1  # nnU-Net's own
    trainer.on_train_start()
    count = sum(".seg_layers." not in name for name in aliases(network))
    file = tmp_path / "checkpoint.pth"
    said = f"SSL3DTrial: {count} of {count} tensors of encoder and decoder are those of '{file}'"
    assert trainer.log == [trainer.log[0], "started", said, "started"]
    with torch.no_grad():
        network.encoder.stem.convs[0].conv.weight += 1
    assert f"{count - 1} of {count}" in module.compared(network.state_dict(), file)
    file.unlink()
    assert "there is no" in module.compared(network.state_dict(), file)


def test_a_trial_of_a_primus_is_of_the_trainer_that_builds_it(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(nnunet_primus, "SIZES_BUILT", ("tiny",))
    labels = tmp_path / "dataset.json"
    labels.write_text('{"channel_names": {"0": "MRI"}, "labels": {"background": 0, "liver": 1}}')
    backbone = randomise(Primus("tiny", input_size=(16, 24, 32)))
    export_nnunet(backbone, tmp_path, dataset_json=labels)
    text = (tmp_path / "trainers" / "ssl3d_trial.py").read_text()
    assert text == trial("nnUNet_Primus_tiny_Trainer") and not (tmp_path / "trainers" / "ssl3d_trainers.py").exists()
    module = loaded(text)
    assert module.SSL3DTrial.__bases__ == (PrimusTrainer,)
    network = nnunet_primus.build(backbone, 1, 2, nnunet_primus.network_kwargs(backbone, [16, 24, 32]))
    network.load_state_dict(torch.load(tmp_path / "checkpoint.pth")["network_weights"])
    count = len(aliases(network))  # nnU-Net leaves out none of a Primus
    assert f"{count} of {count} tensors" in module.compared(network.state_dict(), tmp_path / "checkpoint.pth")
    how_to = (tmp_path / "HOW_TO.md").read_text()
    assert " -tr SSL3DTrial -pretrained_weights" in how_to and "SSL3DWarmup" not in how_to
