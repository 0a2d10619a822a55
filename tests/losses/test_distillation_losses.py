"""DINO's and iBOT's cross-entropies against slow twins, and against lightly's where these take the same input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightly.loss import DINOLoss, IBOTPatchLoss
from lightly.models.modules.heads import DINOProjectionHead

from ssl3d.losses.distillation import token_cross_entropy, view_cross_entropy
from ssl3d.models.prototypes import PrototypeHead
from ssl3d.tasks.token_mask import token_weights

VIEWS, TAUGHT, BATCH, K = 5, 2, 3, 7


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_shares(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum())


def test_views_equal_their_twin_and_never_meet_themselves():
    student, targets = drawn(VIEWS, BATCH, K), drawn(TAUGHT, BATCH, K, seed=1).softmax(-1)
    seen = torch.ones(VIEWS, BATCH, dtype=torch.bool)
    seen[3, 0] = seen[1, 2] = False
    samples = []
    for b in range(BATCH):
        pairs = [(t, s) for t in range(TAUGHT) for s in range(VIEWS) if s != t and seen[t, b] and seen[s, b]]
        costs = [-(targets[t, b].numpy() * log_shares(student[s, b].numpy() / 0.2)).sum() for t, s in pairs]
        samples.append(np.mean(costs))
    found = view_cross_entropy(student, targets, 0.2, seen).item()
    assert found == pytest.approx(np.mean(samples), rel=1e-12)


def test_a_view_gets_no_gradient_from_its_own_target():
    student = drawn(1, BATCH, K).requires_grad_()
    loss = view_cross_entropy(student, drawn(1, BATCH, K).softmax(-1), 0.1, torch.ones(1, BATCH, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and (student.grad == 0).all()


def test_views_equal_lightlys_loss():
    student, teacher = drawn(VIEWS, BATCH, K), drawn(TAUGHT, BATCH, K, seed=1)
    expected = DINOLoss(K, student_temp=0.1).double()(list(teacher), list(student), teacher_temp=0.5)
    seen = torch.ones(VIEWS, BATCH, dtype=torch.bool)
    torch.testing.assert_close(view_cross_entropy(student, (teacher / 0.5).softmax(-1), 0.1, seen), expected)


def test_tokens_equal_lightlys_loss_and_weights_sum_to_the_masked_views():
    grid = (2, 3, 4)
    hidden = torch.rand((4, *grid), generator=torch.Generator().manual_seed(0)) < 0.4
    hidden[2] = False
    rows = hidden.reshape(4, -1)
    student, teacher = drawn(int(rows.sum()), K), drawn(int(rows.sum()), K, seed=1)
    weights = token_weights(rows)
    assert weights.sum() == pytest.approx(3) and (weights[~rows] == 0).all()
    found = token_cross_entropy(student, (teacher / 0.5).softmax(-1), 0.1, weights[rows], 4)
    # lightly sums a mask's axes 1 and 2: of volumes it must be given (B, 1, N)
    lightly = IBOTPatchLoss(K, student_temp=0.1).double()
    torch.testing.assert_close(found, lightly(teacher, student, hidden.reshape(4, 1, -1), teacher_temp=0.5))


def test_no_hidden_token_costs_nothing_and_has_a_gradient():
    student = drawn(0, K).requires_grad_()
    loss = token_cross_entropy(student, drawn(0, K), 0.1, drawn(0), 4)
    loss.backward()
    assert loss == 0 and student.grad is not None


def test_the_head_equals_lightlys():
    theirs, ours = DINOProjectionHead(5, 8, 4, K).double(), PrototypeHead(5, 8, 4, K).double()
    ours.project.load_state_dict({k: v for k, v in theirs.state_dict().items() if k[:6] == "layers"})
    ours.prototypes.data.copy_(theirs.last_layer.weight_v)
    x = drawn(6, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours(x).abs().max() <= 1 + 1e-12
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(x), ours(x.double())) and ours(x).dtype == torch.float64
