"""Sinkhorn-Knopp and centres against slow twins in float64; what samples of weight 0, and none at all, change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed

from ssl3d.losses.sinkhorn import Targets, sinkhorn


def logits(n: int = 24, k: int = 6, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand((n, k), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def twin(x: np.ndarray, temperature: float, iterations: int) -> np.ndarray:
    """As SwAV's listing: prototypes x samples, sums one entry at a time."""
    n, k = x.shape
    q = [[np.exp(x[b, j] / temperature) for b in range(n)] for j in range(k)]
    total = sum(map(sum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(iterations):
        q = [[value / sum(row) / k for value in row] for row in q]
        columns = [sum(q[j][b] for j in range(k)) for b in range(n)]
        q = [[q[j][b] / columns[b] / n for b in range(n)] for j in range(k)]
    return n * np.array(q).T


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_equals_its_slow_twin(iterations):
    x = logits()
    np.testing.assert_allclose(sinkhorn(x, 0.1, iterations).numpy(), twin(x.numpy(), 0.1, iterations), rtol=1e-9)


def test_samples_sum_to_one_and_prototypes_share_them_evenly():
    x = logits(40, 8)
    for iterations, off in ((3, 1.0), (100, 0.01)):
        shares = sinkhorn(x, 0.05, iterations)
        torch.testing.assert_close(shares.sum(1), torch.ones(40, dtype=torch.float64))
        assert (shares.sum(0) - 40 / 8).abs().max() < off * 40 / 8
    plain = (x / 0.05).softmax(1).sum(0)
    assert (sinkhorn(x, 0.05).sum(0) - 5).abs().max() < (plain - 5).abs().max()


def test_one_number_added_to_all_logits_changes_nothing_and_nothing_overflows():
    x = logits()
    torch.testing.assert_close(sinkhorn(x + 5.0, 0.1), sinkhorn(x, 0.1), rtol=1e-9, atol=1e-12)
    wide = sinkhorn(x.float(), 0.005)
    assert wide.isfinite().all()
    torch.testing.assert_close(wide.sum(1), torch.ones(24))


def test_samples_of_weight_zero_take_no_part():
    x, weight = logits(), torch.ones(24)
    weight[[3, 17]] = 0
    shares = sinkhorn(x, 0.1, weight=weight)
    assert (shares[weight == 0] == 0).all()
    torch.testing.assert_close(shares[weight > 0], sinkhorn(x[weight > 0], 0.1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["sinkhorn", "centre"])
def test_a_rank_without_samples_gets_none(kind):
    targets = Targets(6, kind)
    assert targets(logits()[:0], 0.1).shape == (0, 6)
    targets.after_step()
    assert (targets.centre == 0).all()


def test_a_centre_moves_after_the_step_by_all_it_has_seen():
    targets, x, weight = Targets(6, "centre", momentum=0.9).double(), logits(), torch.ones(24)
    weight[5] = 0
    first = targets(x[:10], 0.1, weight[:10])
    torch.testing.assert_close(first, (x[:10] / 0.1).softmax(1))
    targets(x[10:], 0.1)
    assert torch.equal(targets(x[:10], 0.1, torch.zeros(10)), first), "a pass changed the next one"
    targets.eval()(100 + x, 0.1)
    targets.train().after_step()
    expected = 0.1 * x[weight > 0].mean(0)
    torch.testing.assert_close(targets.centre, expected)
    targets.eval()
    torch.testing.assert_close(targets(x, 0.1), ((x - expected) / 0.1).softmax(1))
    targets.after_step()
    torch.testing.assert_close(targets.centre, expected)


SPLITS = {"uneven": (slice(0, 17), slice(17, 24)), "one empty": (slice(0, 24), slice(24, 24))}  # two ranks' rows


def worker(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=number, world_size=2)
    for name, rows in SPLITS.items():
        mine, targets = logits()[rows[number]], Targets(6, "centre").double()
        targets(mine, 0.1)
        targets.after_step()
        torch.save((sinkhorn(mine, 0.1), targets.centre), Path(folder, f"{name} {number}.pt"))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_with_uneven_rows_equal_one_process(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    expected = sinkhorn(logits(), 0.1)
    for name, rows in SPLITS.items():
        for number in range(2):
            shares, centre = torch.load(tmp_path / f"{name} {number}.pt")
            torch.testing.assert_close(shares, expected[rows[number]], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(centre, 0.1 * logits().mean(0), rtol=1e-9, atol=1e-12)
