"""gather: identity on one rank; on two, the gradient of one process that holds all rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ssl3d.losses.gather import alone, gather, rank, world_size

ROWS, RANKS = 3, 2


def contrast(z: Tensor) -> Tensor:
    """A loss that pairs all rows, with a weight that differs a row so that order matters."""
    z = nn.functional.normalize(z, dim=1)
    weight = torch.arange(1.0, len(z) + 1, dtype=z.dtype)
    return ((z @ z.T).exp() * weight[:, None] * weight.flip(0)[None]).mean()


def data() -> Tensor:
    return torch.randn((RANKS * ROWS, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def worker(number: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=number, world_size=RANKS)
    assert (world_size(), rank()) == (RANKS, number)
    model = DistributedDataParallel(network())
    gathered = gather(model(data()[number * ROWS : (number + 1) * ROWS]))
    assert gathered.shape == (RANKS * ROWS, 3)
    contrast(gathered).backward()
    if number == 0:  # a picture, say: nobody else takes part
        with alone():
            assert gather(gathered) is gathered and (world_size(), rank()) == (1, 0)
    assert world_size() == RANKS
    torch.save([p.grad for p in model.parameters()], Path(folder) / f"gradients{number}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def test_identity_on_one_rank():
    x = torch.randn(3, 4)
    assert gather(x) is x and world_size() == 1 and rank() == 0


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_one_process(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=RANKS)
    model = network()
    contrast(model(data())).backward()
    for number in range(RANKS):
        found = torch.load(tmp_path / f"gradients{number}.pt")
        for parameter, gradient in zip(model.parameters(), found):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-12)
