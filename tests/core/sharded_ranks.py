"""What two ranks do in tests/core/test_sharding.py: every family trained a few steps, sharded and under DDP."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ssl3d import optim, sharding
from ssl3d.config import OptimConfig
from ssl3d.models.backbone import Backbone
from ssl3d.models.recompute import recompute_segments
from ssl3d.models.segresnet import SegResNet
from ssl3d.testing.matrix import backbone_classes, small_backbone, small_size

RANKS, STEPS = 2, 2
FAMILIES = {cls.__name__: cls for cls in backbone_classes()}
# Sharding alone on two families, in float32 too; sharding and recomputation together on those that are named
CASES = [(n, t, ("ddp", "fsdp")) for n in ("ResEncUNet", "ViT") for t in (torch.float32, torch.float64)]


class Whole(nn.Module):
    """Tensors in and out: the mean square of all features."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone.encode(x)
        outputs = [*features, *(self.backbone.decode(features) if self.backbone.decoder_channels else [])]
        return torch.stack([y.square().mean() for y in outputs]).mean()


def trained(name: str, kind: str, dtype: torch.dtype, rank: int) -> dict[str, Tensor]:
    """Losses, gradient norms, weights, optimiser state and moving average after a few steps; whole."""
    torch.manual_seed(0)
    backbone = small_backbone(FAMILIES[name]).to(dtype).train()
    whole = Whole(backbone)
    size = small_size(backbone)
    module: nn.Module = whole
    if kind == "ddp":
        module = DistributedDataParallel(whole, find_unused_parameters=True)
    else:
        if "recomputed" in kind:
            recompute_segments(backbone)
        sharding.shard(whole, torch.device("cpu"))
    average = optim.WeightAverage(whole, 0.9)
    config = OptimConfig(lr=1e-2, name="sgd", momentum=0.9, weight_decay=1e-2)
    optimizer = optim.build_optimizer(whole, config, set())
    generator = torch.Generator().manual_seed(1)
    losses, norms = [], []
    for step in range(STEPS):
        optim.set_step(optimizer, step, STEPS, config)
        torch.manual_seed(100 * step + rank)  # dropout differs from rank to rank
        x = torch.randn((RANKS, 1, *size), generator=generator).to(dtype)[rank : rank + 1]
        loss = module(x)
        loss.backward()
        norm = sharding.plain(torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.5))
        optimizer.step()
        optimizer.zero_grad()
        average.update(whole)
        losses.append(loss.detach())
        norms.append(norm)
    state = sharding.whole(
        {"model": whole.state_dict(keep_vars=True), "average": average.state, "optimizer": optimizer.state_dict()},
        keep=True,
    )
    momenta = {f"momentum {i}": s["momentum_buffer"] for i, s in state["optimizer"]["state"].items()}
    weights = {f"{part} {k}": v for part in ("model", "average") for k, v in state[part].items()}
    return {"loss": torch.stack(losses), "norm": torch.stack(norms), **momenta, **weights}


def accumulated(rank: int) -> list[Tensor]:
    """Whole gradients of two micro-batches, told to the other rank once or after each."""
    found = []
    for later in (False, True):
        torch.manual_seed(0)
        whole = Whole(small_backbone(SegResNet).double().train())
        sharding.shard(whole, torch.device("cpu"))
        control = sharding.ShardedStrategy()._backward_sync_control
        assert control is not None
        for micro in range(2):
            x = torch.randn((1, 1, 8, 8, 16), generator=torch.Generator().manual_seed(2 * micro + rank)).double()
            with control.no_backward_sync(whole, enabled=later and micro == 0):
                whole(x).backward()
        gradients = [p.grad for p in whole.parameters() if p.grad is not None]
        found.append(torch.cat([sharding.plain(g).flatten() for g in gradients]))
    return found


def main() -> None:
    folder, rank, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    cases = [*CASES, *((name, torch.float64, ("ddp", "fsdp, recomputed")) for name in names)]
    for number, (name, dtype, kinds) in enumerate(cases):
        results = {kind: trained(name, kind, dtype, rank) for kind in kinds}
        if rank == 0:
            torch.save(results, folder / f"{number} {name} {dtype}.pt")
    once, each = accumulated(rank)
    if rank == 0:
        torch.save((once, each), folder / "accumulated.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
