"""Every pair of task and backbone learns one batch, resumes to the same bits, and is the same network once exported."""

from __future__ import annotations

import pytest
import torch
from lightly.loss import NTXentLoss, VICRegLoss

from ssl3d.testing.matrix import backbone_classes, refusal, small_backbone, task_classes
from ssl3d.testing.pairs import (
    SHARE,
    VOLUME,
    export_everywhere,
    is_long,
    learn,
    nt_xent_floor,
    resume,
    vicreg_floor,
)
from ssl3d.testing.small_store import write_small

LONG = {family for family in backbone_classes() if is_long(small_backbone(family))}
# With a large input a pair takes half a minute: the slow tests have one of each such family, the acceptance tests all.
FIRST = "MAE"
PAIRS = [(task, family) for task in task_classes() for family in backbone_classes() if refusal(task, family) is None]


def named(pair) -> str:
    return f"{pair[0].__name__}-{pair[1].__name__}"


@pytest.fixture(scope="session")
def pair_store(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("pairs") / "store.zarr", 4, VOLUME)


def learns(pair) -> None:
    learnt = learn(*pair)
    assert learnt.share <= SHARE, learnt


@pytest.mark.slow
@pytest.mark.parametrize("pair", [p for p in PAIRS if p[1] not in LONG or p[0].__name__ == FIRST], ids=named)
def test_resumes_to_the_same_bits_and_exports_the_same_network(pair, pair_store, tmp_path):
    resumes_and_exports(pair, pair_store, tmp_path)


@pytest.mark.acceptance
@pytest.mark.parametrize("pair", [p for p in PAIRS if p[1] in LONG and p[0].__name__ != FIRST], ids=named)
def test_resumes_and_exports_with_a_large_input(pair, pair_store, tmp_path):
    resumes_and_exports(pair, pair_store, tmp_path)


def resumes_and_exports(pair, pair_store, tmp_path):
    formats = export_everywhere(resume(*pair, pair_store, tmp_path / "run"), tmp_path / "out")
    assert "safetensors" in formats
    assert ("nnunet" in formats) == (pair[1].__name__ in ("ResEncUNet", "PlainConvUNet"))


@pytest.mark.slow
@pytest.mark.parametrize("pair", [p for p in PAIRS if p[1] not in LONG], ids=named)
def test_learns_one_batch(pair):
    learns(pair)


@pytest.mark.acceptance
@pytest.mark.parametrize("pair", [p for p in PAIRS if p[1] in LONG], ids=named)
def test_learns_one_batch_of_a_large_input(pair):
    learns(pair)


def least(loss, samples: int, features: int) -> float:
    """The least loss that free embeddings reach, the best of a few starts."""
    found = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn((2, samples, features), generator=generator, dtype=torch.float64).requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.02)
        for _ in range(400):
            optimizer.zero_grad()
            value = loss(z[0], z[1])
            value.backward()
            optimizer.step()
        found.append(value.item())
    return min(found)


@pytest.mark.parametrize(("samples", "temperature"), [(2, 0.5), (4, 0.5), (5, 1.0)])
def test_the_floor_of_nt_xent_is_what_free_embeddings_reach(samples, temperature):
    floor = nt_xent_floor(samples, temperature)
    assert floor * 0.9999 < least(NTXentLoss(temperature), samples, 6) < floor * 1.02


@pytest.mark.parametrize(("samples", "features"), [(2, 8), (4, 8)])
def test_the_floor_of_vicreg_is_what_free_embeddings_reach(samples, features):
    floor = vicreg_floor(samples, features, 25.0, 1.0)
    assert floor * 0.9999 < least(VICRegLoss(), samples, features) < floor * 1.1
    assert vicreg_floor(9, 8, 25.0, 1.0) == 0
