"""Objectives of whole volumes: what is learnt, what is left out, calibrated shares, attention that begins as a mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapes_store import NETWORK

from downstream.volume import VolumeTarget
from downstream.volume_finetune import class_shares, moments
from downstream.volume_objective import GatedAttention, VolumeClassification, VolumeRegression
from ssl3d.data.loader import RegionLoader
from ssl3d.data.phantom_pathology import write_pathology
from ssl3d.data.sampling import SamplingPlan
from ssl3d.data.store import open_store
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.vit import ViT

SIZE = (8, 16, 24)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    store = open_store(write_pathology(tmp_path_factory.mktemp("objective") / "store.zarr", 4, seed=1))
    objective = classification()
    with RegionLoader(SamplingPlan([store], objective.region, 0), 4, workers=0) as loader:
        return next(iter(loader)).normalised()


def resenc() -> ResEncUNet:
    torch.manual_seed(0)
    return ResEncUNet("S", 1, NETWORK)


def classification(**changes) -> VolumeClassification:
    own = {"codes": [0.0, 1.0], "shares": [0.75, 0.25], "column": 1}  # targets by name: lesion_share, pathology
    return VolumeClassification(resenc(), SIZE, **(own | changes))


def regression(**changes) -> VolumeRegression:
    return VolumeRegression(resenc(), SIZE, **({"column": 0, "mean": 0.4, "std": 0.2} | changes))


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("make", [classification, regression])
def test_it_learns_a_batch(batch, make, pooling):
    objective = make(pooling=pooling)
    optimiser = torch.optim.AdamW(objective.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss = objective(batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    encoder = objective.backbone.encoder_parameter_names()
    assert all((p.grad is not None) == (n in encoder) for n, p in objective.backbone.named_parameters())
    assert not objective.needs_decoder


def test_volumes_without_a_target_enter_no_loss(batch):
    objective = classification(balanced=False)
    whole = batch.target.clone()
    whole[1:, 1] = float("nan")
    alone = objective(batch.replace(target=whole))["loss"]
    torch.testing.assert_close(alone, objective(batch[:1])["loss"])
    nobody = objective(batch.replace(target=torch.full_like(whole, float("nan"))))["loss"]
    nobody.backward()
    assert nobody == 0 and all(p.grad is None or not p.grad.any() for p in objective.parameters())
    with pytest.raises(ValueError, match="no target number 7"):
        classification(column=7)(batch)


def test_predictions_are_probabilities_and_values(batch):
    for balanced in (True, False):
        p = classification(balanced=balanced).predict(batch.image)
        assert p.shape == (4, 2) and torch.allclose(p.sum(1), torch.ones(4))
    objective = classification()
    torch.nn.init.zeros_(objective.head.linear.weight)
    torch.nn.init.zeros_(objective.head.linear.bias)
    # a network that knows nothing says the shares of the labelled patients, and its weighted loss is that of a coin
    np.testing.assert_allclose(objective.predict(batch.image).detach()[0], [0.75, 0.25], rtol=1e-6)
    weighted = objective.loss(torch.zeros(4, 2), torch.tensor([0.0, 0, 0, 1])).mean()
    assert weighted == pytest.approx(np.log(2), rel=1e-5)
    number = regression()
    torch.nn.init.zeros_(number.head.linear.weight)
    torch.nn.init.constant_(number.head.linear.bias, 1.0)
    np.testing.assert_allclose(number.predict(batch.image).detach(), np.full((4, 1), 0.6), rtol=1e-6)


def test_attention_begins_as_the_mean_and_follows_its_weights():
    attention = GatedAttention(5, 3)
    tokens = torch.randn(2, 7, 5)
    torch.testing.assert_close(attention(tokens), tokens.mean(1))
    torch.nn.init.normal_(attention.score.weight)
    order = torch.randperm(7)
    torch.testing.assert_close(attention(tokens[:, order]), attention(tokens))  # of a set
    pooled, low, high = attention(tokens), tokens.amin(1), tokens.amax(1)
    assert (pooled >= low).all() and (pooled <= high).all() and not torch.allclose(pooled, tokens.mean(1))


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_transformer_of_one_scale_is_pooled_too(batch, pooling):
    vit = ViT("tiny", 1, (8, 8, 8))
    objective = VolumeRegression(vit, SIZE, column=0, mean=0.0, std=1.0, pooling=pooling)
    objective(batch)["loss"].backward()
    assert objective.predict(batch.image).shape == (4, 1)
    assert all(p.grad is not None for p in objective.head.parameters())


def test_shares_and_moments_count_patients():
    patients = {"a": (0, 1), "b": (2,), "c": (3,)}
    values = {0: 2.0, 1: 2.0, 2: 5.0, 3: 2.0}
    target = VolumeTarget("grade", "classification", ("2", "5", "9"), (2.0, 5.0, 9.0), values, patients, 0)
    assert class_shares(target, ["a", "b"]) == [2 / 5, 2 / 5, 1 / 5]  # one patient more in each class
    number = VolumeTarget("age", "regression", (), (), values, patients, 0)
    assert moments(number, ["a", "b"]) == (3.5, 1.5) and moments(number, ["a"]) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"codes": [1.0]}, "at least 2"), ({"shares": [1.0, 0.0]}, "above 0"), ({"column": -1}, "column is -1")],
)
def test_ranges(change, words):
    with pytest.raises(ValueError, match=words):
        classification(**change)
