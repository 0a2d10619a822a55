"""LoRA on Swin UNETR: shifted windows, non-cubic anisotropic images, both versions of the network."""

from __future__ import annotations

import pytest
import torch

from downstream.freezing import Frozen, count_trained
from downstream.segmentation import Segmentation
from ssl3d.config import OptimConfig
from ssl3d.models.lora import LoRALinear
from ssl3d.models.swin import SwinUNETR
from ssl3d.optim import build_optimizer, set_step

SIZE = (32, 64, 96)
V1, V2 = {"use_v2": False}, {"use_v2": True}


def swin(**kwargs) -> SwinUNETR:
    torch.manual_seed(1)
    return SwinUNETR("tiny", 2, **kwargs)


def layers(backbone) -> dict[str, LoRALinear]:
    return {name: module for name, module in backbone.named_modules() if isinstance(module, LoRALinear)}


def moved(backbone) -> None:
    """Let every term be as after a training."""
    for layer in layers(backbone).values():
        torch.nn.init.normal_(layer.lora_b, std=0.2)


def merged(backbone) -> SwinUNETR:
    """The plain network with the terms added to its weights."""
    plain = SwinUNETR(**backbone.spec().kwargs)
    state = {name: value for name, value in backbone.state_dict().items() if ".lora_" not in name}
    for name, layer in layers(backbone).items():
        state[f"{name}.weight"] = layer.weight + layer.scale * layer.lora_b @ layer.lora_a
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("kwargs", [V1, V2])
def test_it_begins_as_the_network_in_every_scale(kwargs):
    backbone = swin(**kwargs).eval()
    x = torch.randn(1, 2, *SIZE)
    with torch.no_grad():
        before = backbone.encode(x)
        Frozen(backbone, "lora", rank=3)
        for a, b in zip(before, backbone.encode(x), strict=True):
            assert torch.equal(a, b)
    names = {name.rpartition(".")[2] for name in layers(backbone)}
    assert names == {"qkv", "proj"} and len(layers(backbone)) == 4 * 2 * 2  # stages, blocks, projections
    assert all(".attn." in name for name in layers(backbone))


@pytest.mark.parametrize("kwargs", [V1, V2 | {"pooling": "voco"}])
def test_merged_weights_give_the_same_features(kwargs):
    backbone = swin(**kwargs).eval()
    x = torch.randn(2, 2, *SIZE)
    with torch.no_grad():
        before = backbone.encode(x)
        Frozen(backbone, "lora", rank=3, alpha=6.0)
        moved(backbone)
        features = backbone.encode(x)
        plain = merged(backbone).eval()
        for scale, (a, b) in enumerate(zip(plain.encode(x), features, strict=True)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            assert torch.equal(before[scale], b) == (scale < 2)  # finer than the first stage of attention
        torch.testing.assert_close(plain.pool(plain.encode(x)), backbone.pool(features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kwargs", [V1, V2 | {"recompute": True}])
def test_gradients_reach_the_terms_decoder_and_head_alone(kwargs):
    task = Segmentation(swin(**kwargs), SIZE, [1, 2], train="lora", lora_rank=3).train()
    moved(task.backbone)
    task.logits(torch.randn(1, 2, *SIZE)).square().mean().backward()
    encoder = task.backbone.encoder_parameter_names()
    for name, parameter in task.named_parameters():
        own = name.removeprefix("backbone.")
        learns = ".lora_" in own or own not in encoder
        assert (parameter.grad is not None) == parameter.requires_grad == learns, name
        assert not learns or parameter.grad.abs().max() > 0, name
    plain = sum(p.numel() for n, p in swin(**kwargs).named_parameters() if n not in encoder)
    terms = sum(3 * sum(layer.weight.shape) for layer in layers(task.backbone).values())
    assert count_trained(task.backbone) == (plain + terms, terms)


def test_recomputed_activations_give_the_same_gradients():
    """Nothing in front of the first terms learns: what is computed again must not depend on its input's gradient."""
    found = []
    image = torch.linspace(-1, 1, 2 * 32 * 64 * 32).reshape(1, 2, 32, 64, 32)
    for recompute in (False, True):
        backbone = swin(recompute=recompute).train()
        torch.manual_seed(2)
        Frozen(backbone, "lora", rank=2)
        moved(backbone)
        backbone.encode(image)[-1].square().mean().backward()
        found.append({name: layer.lora_a.grad for name, layer in layers(backbone).items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_training_leaves_the_encoder_and_decays_rates_by_the_terms_depth():
    task = Segmentation(swin(), (32, 64, 32), [1, 2], train="lora").train()
    encoder = {f"backbone.{name}" for name in task.backbone.encoder_parameter_names()}
    optimizer = build_optimizer(task, OptimConfig(lr=1e-2, weight_decay=0.5, layer_decay=0.9), encoder)
    set_step(optimizer, 0, 2, OptimConfig(lr=1e-2))
    start = {name: value.clone() for name, value in task.state_dict().items()}
    for _ in range(2):  # the first moves b alone, as a's gradient is b's weight
        optimizer.zero_grad()
        task.logits(torch.randn(1, 2, 32, 64, 32)).square().mean().backward()
        optimizer.step()
    moved_names = {name for name, value in task.state_dict().items() if not torch.equal(value, start[name])}
    assert moved_names & encoder == {name for name in encoder if ".lora_" in name}
    assert moved_names - encoder == {name for name, _ in task.named_parameters()} - encoder
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    blocks = [name for name in layers(task.backbone) if name.endswith("attn.qkv")]
    found = [scale[id(layers(task.backbone)[name].lora_a)] for name in blocks]
    assert found == sorted(found) and len(set(found)) == len(blocks) and max(found) < 1
