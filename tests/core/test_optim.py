"""Schedules and parameter groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl3d import optim
from ssl3d.config import ConfigError, OptimConfig
from ssl3d.recipe import GroupConfig


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 2, 3)
        last = nn.Sequential(nn.Conv3d(2, 2, 1), nn.InstanceNorm3d(2, affine=True))
        self.stages = nn.ModuleList([nn.Conv3d(2, 2, 1), last])
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.head = nn.Linear(2, 3)


def scales(groups, net):
    names = {id(p): n for n, p in net.named_parameters()}
    return {names[id(p)]: g for g in groups for p in g["params"]}


def test_norms_biases_and_tokens_are_not_decayed():
    net = Net()
    found = scales(optim.parameter_groups(net, OptimConfig(lr=1.0, weight_decay=0.1), set()), net)
    assert set(found) == dict(net.named_parameters()).keys()
    decayed = {n for n, g in found.items() if g["base_decay"] == 0.1}
    assert decayed == {"stem.weight", "stages.0.weight", "stages.1.0.weight", "head.weight"}


def test_layer_decay_falls_with_depth_and_leaves_the_head():
    net = Net()
    encoder = {n for n, _ in net.named_parameters() if not n.startswith("head")}
    found = scales(optim.parameter_groups(net, OptimConfig(lr=1.0, layer_decay=0.5), encoder), net)
    assert found["stem.weight"]["lr_scale"] == 0.125
    assert found["stages.0.weight"]["lr_scale"] == 0.25
    assert found["stages.1.0.weight"]["lr_scale"] == 0.5
    assert found["head.weight"]["lr_scale"] == 1.0


def test_group_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match="stm"):
        optim.parameter_groups(Net(), OptimConfig(lr=1.0, groups=[GroupConfig(match="stm")]), set())


def test_frozen_until():
    net = Net()
    config = OptimConfig(lr=0.1, weight_decay=0.1, groups=[GroupConfig(match="stem", freeze_until=2)])
    optimizer = optim.build_optimizer(net, config, set())
    before = net.stem.weight.detach().clone()
    for step in range(3):
        optim.set_step(optimizer, step, 10, config)
        sum(p.square().sum() for p in net.parameters()).backward()
        optim.drop_frozen_gradients(optimizer, step)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(net.stem.weight, before) == (step < 2)


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
def test_schedule_warms_up_and_ends(schedule):
    config = OptimConfig(lr=2.0, schedule=schedule, warmup_steps=4, lr_end=0.0)
    rates = [optim.lr_at(step, 20, config) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert sorted(rates[3:], reverse=True) == rates[3:]
    assert rates[-1] == 2.0 if schedule == "constant" else 0 < rates[-1] < 0.25


def test_poly_is_nnunets():
    config = OptimConfig(lr=1e-2, schedule="poly")
    assert optim.lr_at(500, 1000, config) == pytest.approx(1e-2 * 0.5**0.9)


def test_weight_average_starts_as_a_copy_and_follows():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = optim.WeightAverage(net, 0.9)
    start = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.add_(1.0)
    net(torch.randn(4, 2))
    average.update(net)
    torch.testing.assert_close(average.state["0.weight"], start + 0.1)
    assert average.state["1.num_batches_tracked"] == 1


@pytest.mark.parametrize("first", ["head", "encoder"])
def test_one_part_learns_first(first):
    net = Net()
    encoder = {n for n, _ in net.named_parameters() if not n.startswith("head")}
    waits = {"encoder_freeze_until": 2} if first == "head" else {"rest_freeze_until": 2}
    config = OptimConfig(lr=0.1, weight_decay=0.1, **waits)
    optimizer = optim.build_optimizer(net, config, encoder)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for step in range(3):
        optim.set_step(optimizer, step, 10, config)
        sum((p + 1).square().sum() for p in net.parameters()).backward()
        optim.drop_frozen_gradients(optimizer, step)
        optimizer.step()
        optimizer.zero_grad()
        still = {n for n, p in net.named_parameters() if torch.equal(p, before[n])}
        waiting = encoder if first == "head" else set(before) - encoder
        assert still == (waiting if step < 2 else set())


def test_layers_are_numbered_in_order_whatever_they_are_called():
    def layers(*names: str) -> list[int]:
        return list(optim.encoder_layers(names).values())

    assert layers("patch_embed.weight", "layers.0.qkv.weight", "layers.1.norm1.bias", "norm.weight") == [0, 1, 2, 2]
    assert layers("conv1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.bn1.bias") == [0, 1, 1, 2]
    assert layers("down_tr64.ops.0.conv1.weight", "down_tr128.ops.0.conv1.weight") == [1, 2]
    assert layers("stem.stages.0.blocks.0.conv.weight", "stem.stages.1.x.weight", "eva.blocks.0.gamma_1") == [1, 2, 3]
    assert layers("swin.layers1.0.blocks.0.w", "swin.layers1.0.blocks.1.w", "swin.layers2.0.blocks.0.w") == [1, 2, 3]
