"""Activation checkpointing: loss, gradients and statistics have the bits they have without it, and less is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ssl3d.models.backbone import TokenBackbone, outermost
from ssl3d.models.primus import Primus
from ssl3d.models.recompute import recompute_segments
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.swin import SwinUNETR
from ssl3d.models.vit import ViT
from ssl3d.tasks.sparse_mae import SparseMAE
from ssl3d.testing.matrix import backbone_classes, small_backbone, small_size
from ssl3d.testing.toys import TinyUNet, make_batch

FAMILIES = [cls for cls in backbone_classes() if cls is not TinyUNet]


def step(backbone, x):
    """Loss, gradients and buffers after a step that reaches every parameter it can, and the bytes kept for it."""
    kept = dict[int, Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    torch.manual_seed(3)  # dropout and dropped paths
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = backbone.encode(x)
        outputs = [*features, *(backbone.decode(features) if backbone.decoder_channels else [])]
    weights = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    size = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
    kept.clear()
    loss = sum((y.double().square().mean() for y in outputs), torch.zeros((), dtype=torch.float64))
    loss.backward()
    gradients = {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, dict(backbone.named_buffers()), size


@pytest.mark.parametrize("family", FAMILIES, ids=lambda c: c.__name__)
def test_the_same_bits_for_less_memory(family):
    results = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        backbone = small_backbone(family).train()
        names = list(backbone.state_dict())
        if recomputed:
            recompute_segments(backbone)
        assert list(backbone.state_dict()) == names
        results.append(step(backbone, torch.randn((2, 1, *small_size(backbone)))))
    (loss, gradients, buffers, kept), (loss2, gradients2, buffers2, kept2) = results
    assert torch.equal(loss, loss2)
    assert gradients.keys() == gradients2.keys() and gradients
    assert all(torch.equal(gradients[k], gradients2[k]) for k in gradients)
    assert all(torch.equal(buffers[k], buffers2[k]) for k in buffers), "running statistics count a batch once"
    assert kept2 < kept


@pytest.mark.parametrize("family", FAMILIES, ids=lambda c: c.__name__)
def test_segments_hold_most_parameters_and_none_holds_another(family):
    backbone = small_backbone(family)
    segments = backbone.segments()
    inside = [p for segment in segments for p in {id(p): p for p in segment.parameters()}.values()]
    assert len({id(p) for p in inside}) == len(inside), "a parameter lies in one segment"
    assert sum(p.numel() for p in inside) > 0.4 * sum(p.numel() for p in backbone.parameters())


def test_tokens_with_dropped_paths_and_a_share_of_places():
    """Random numbers inside a segment are drawn again as they were, arguments by name included."""
    x = torch.randn((2, 1, 16, 32, 16))
    results = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        backbone: TokenBackbone = Primus("tiny", input_size=(16, 32, 16), drop_path=0.5).train()
        if recomputed:
            recompute_segments(backbone)
        torch.manual_seed(5)
        index = torch.tensor([[0, 3, 5], [7, 2, 1]])
        tokens = backbone.embed(x)
        tokens = tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        loss = backbone.blocks(tokens, backbone.grid((16, 32, 16)), index)[0].square().mean()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in backbone.eva.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_the_sparse_encoder_recomputes_its_stages():
    results = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        task = SparseMAE(small_backbone(ResEncUNet), (8, 16, 24), 0.5, (4, 4, 8)).train()
        if recomputed:
            recompute_segments(task.backbone)
        loss = task(make_batch(task.region.size))["loss"]
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in task.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_without_gradients_nothing_is_kept_or_recomputed():
    backbone = small_backbone(ViT)
    calls = []
    backbone.segments()[0].register_forward_hook(lambda *_: calls.append(1))
    recompute_segments(backbone)
    with torch.no_grad():
        assert not backbone.encode(torch.randn((1, 1, *small_size(backbone))))[0].requires_grad
    assert calls == [1]


def test_a_network_without_segments_is_refused():
    with pytest.raises(ValueError, match=r"run\.recompute is true, but TinyUNet names no segments"):
        recompute_segments(TinyUNet())


def test_outermost_names_shared_and_nested_modules_once():
    inner = nn.Sequential(nn.Linear(2, 2))
    module = nn.ModuleList([nn.Sequential(inner), inner, nn.ModuleList([nn.Linear(2, 3)])])
    found = outermost(module, (nn.Sequential, nn.Linear))
    assert [type(m).__name__ for m in found] == ["Sequential", "Sequential", "Linear"]
    assert outermost(nn.ModuleList([inner, inner]), (nn.Sequential,)) == [inner]


def test_swin_keeps_its_own_key():
    backbone = SwinUNETR("tiny", recompute=True)
    recompute_segments(backbone)  # one inside the other does no harm
    backbone.encode(torch.randn((1, 1, 32, 64, 32)))[-1].square().mean().backward()
    assert backbone.swinViT.patch_embed.proj.weight.grad is not None
