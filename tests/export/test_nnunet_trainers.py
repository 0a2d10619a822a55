"""The trainers written beside an export, without nnU-Net: their rates by epoch, and which parameters they hold."""

import sys
import types

import pytest
import torch

from ssl3d.export.nnunet import TRAINERS
from ssl3d.models.resenc import ResEncUNet


@pytest.fixture
def trainers(monkeypatch):
    """The module as nnU-Net loads it, on a stand-in for its trainer."""

    class Trainer:
        initial_lr, weight_decay, num_epochs = 0.01, 3e-5, 1000

        def __init__(self, network):
            self.network = network

    name = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
    for i in range(1, 5):
        part = ".".join(name.split(".")[:i])
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    sys.modules[name].nnUNetTrainer = Trainer
    module = types.ModuleType("ssl3d_trainers")
    exec(TRAINERS.read_text(), module.__dict__)
    return module


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
