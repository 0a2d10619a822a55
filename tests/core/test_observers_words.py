"""The entropy of attention is that of the formula, and what observers see is said in words once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from downstream.runs import load_run, write_page
from ssl3d.log import WARNING, read_metrics
from ssl3d.models.primus import Primus
from ssl3d.models.vit import ViT
from ssl3d.observers.attention import BLOCK, LOWEST, MEAN, _Listening, entropies, summary
from ssl3d.observers.probe import SCORE
from ssl3d.observers.words import HOLDOUT, sentences
from ssl3d.train import train


def test_the_entropy_is_that_of_the_softmax():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    with _Listening() as heard:
        out = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v))
    scores = np.einsum("bhnf,bhmf->bhnm", q.numpy(), k.numpy()) / 2
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    assert float(heard.entropies[0]) == pytest.approx(-(shares * np.log(shares)).sum(-1).mean() / math.log(7))


@pytest.mark.parametrize("scale,entropy", [(0.0, 1.0), (1e6, 0.0)])
def test_one_where_all_tokens_are_alike_and_zero_where_one_is_chosen(scale, entropy):
    q = torch.randn(1, 2, 100, 8, generator=torch.Generator().manual_seed(0))
    with _Listening() as heard:
        F.scaled_dot_product_attention(q * scale, q, q)
    assert float(heard.entropies[0]) == pytest.approx(entropy, abs=1e-3)


@pytest.mark.parametrize(
    "backbone", [ViT("tiny", patch_size=(4, 8, 8)), Primus("tiny", patch_size=(4, 8, 8), input_size=(8, 16, 24))]
)
def test_every_block_is_heard(backbone):
    backbone.eval()
    image = torch.randn(1, 1, 8, 16, 24)
    with torch.no_grad():
        values = entropies(backbone, image)
        assert len(values) == backbone.depth and all(0 < value <= 1 for value in values)
        with torch.random.fork_rng():
            expected = backbone.encode(image)[0]
            entropies(backbone, image)
        assert torch.equal(backbone.encode(image)[0], expected)
    assert summary(values) == {
        MEAN: pytest.approx(sum(values) / len(values)), LOWEST: min(values), BLOCK: values.index(min(values)),
    }  # fmt: skip
    assert summary([]) == {}


def said_at(key: str, values: list[float], **more: float) -> dict[int, list[str]]:
    """{step: sentences} of readings that come one after the other, between lines of losses."""
    lines, said = [], {}
    for step, value in enumerate(values, 1):
        lines += [{"step": step, "loss": 1.0}, {"step": step, key: value, **more}]
        if found := sentences(lines):
            said[step] = found
            lines.append({"step": step, WARNING: found[0]})
    return said


def test_a_rising_holdout_loss_is_said_once_a_rise():
    said = said_at(HOLDOUT, [1.0, 0.5, 0.54, 0.56, 0.7, 0.5, 0.6])
    assert list(said) == [4, 7]
    assert said[4][0].startswith("the held-out loss rose from 0.5 at step 2 to 0.56 at step 4: the network over-fits")
    assert said_at(HOLDOUT, [-1.0, -0.95, -0.8]).keys() == {3}


def test_a_probe_that_stalls_is_said_once_a_stall():
    said = said_at(SCORE, [0.3, 0.6, 0.5, 0.6, 0.5, 0.5, 0.59, 0.5, 0.7, *[0.6] * 5])
    assert list(said) == [7, 14]
    assert said[7][0].startswith("probe/score has not risen since step 2 (0.6; now, at step 7, 0.59)")


def test_a_block_that_looks_at_single_tokens_is_said_once():
    said = said_at(LOWEST, [0.8, 0.05, 0.04, 0.3, 0.02], **{BLOCK: 3})
    assert list(said) == [2, 5] and said[2][0].startswith("attention of block 3 has only 0.05 of its largest entropy")


def test_a_vit_run_logs_its_attention_and_a_warning_reaches_log_terminal_and_report(tiny, capsys, monkeypatch):
    monkeypatch.setattr("ssl3d.observers.words.FLAT", 2.0)
    vit = "model={_target_: ssl3d.models.vit.ViT, size: tiny, patch_size: [4, 8, 4]}"
    task = ["task.decoder_dim=32", "task.decoder_depth=1", "task.mask_block=[4, 8, 4]"]
    run = train(tiny(vit, *task, "run.steps=4", "run.collapse_every=2"))
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines if MEAN in line] == [2, 4]
    (warning,) = [line for line in lines if WARNING in line]
    assert warning["step"] == 2 and warning[WARNING].startswith("attention of block")
    assert f"{run}: {warning[WARNING]}" in capsys.readouterr().out.splitlines()
    assert warning[WARNING] in write_page([load_run(run)], run).read_text()
