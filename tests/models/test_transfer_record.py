"""The record of a transfer: shares, refusals, JSON and HTML from a few tensors counted by hand."""

import json

import pytest

from ssl3d.models.transfer import HTML_COLUMNS, TensorOutcome, TransferReport


@pytest.fixture
def record():
    """Encoder: 20 of 50 values and 1 of 2 layers filled; decoder: none of 30; a head; something ignored."""
    return TransferReport(
        [
            TensorOutcome("encoder.0.weight", "copied", (4, 4)),
            TensorOutcome("encoder.0.norm", "adapted", (4,), "halved"),
            TensorOutcome("encoder.1.weight", "fresh", (5, 6), "not in <the file>"),
            TensorOutcome("decoder.weight", "fresh", (30, 1), "not trained", "decoder"),
            TensorOutcome("head.weight", "fresh", (1000, 1), "new", "head"),
            TensorOutcome("queue", "ignored", (999,), "the model has no such tensor"),
        ]
    )


def test_shares_are_of_the_target_and_leave_out_heads_and_what_was_ignored(record):
    assert record.share("encoder") == 20 / 50
    assert record.share("decoder") == 0
    assert record.share() == 20 / 80
    assert record.encoder_depth() == 1 / 2
    assert record.shares() == "25 % of the parameters are filled, 40 % of the encoder's (1 of its 2 layers)"
    assert TransferReport().share() == 0


def test_below_the_threshold_is_refused_with_the_first_tensor_and_the_remedy(record):
    record.refuse_below(0.4, "file.pth")
    with pytest.raises(
        ValueError, match=r"file.pth: only 40 % .*less than the 50 %.*'encoder.1.weight' .*--minimum 0.4"
    ):
        record.refuse_below(0.5, "file.pth")


def test_strict_refuses_all_but_copies_and_heads(record):
    with pytest.raises(ValueError, match=r"--strict: 'encoder.0.norm' would be adapted \(halved\)"):
        record.refuse_inexact("file.pth")
    TransferReport([record.tensors[0], record.tensors[4]]).refuse_inexact("file.pth")


def test_json_and_html_say_the_same(record):
    content = json.loads(json.dumps(record.to_dict()))
    assert content["shares"] == {"parameters": 0.25, "encoder_parameters": 0.4, "encoder_layers": 0.5}
    assert content["tensors"][1] == {
        "name": "encoder.0.norm", "outcome": "adapted", "shape": [4], "reason": "halved", "part": "encoder",
    }  # fmt: skip
    row = record.html_row("<mine>")
    assert row.count("<td>") == len(HTML_COLUMNS)
    assert "&lt;mine&gt;" in row and "<td>25 %</td><td>40 %</td><td>50 %</td>" in row


def test_a_share_is_never_rounded_to_all_or_nothing():
    almost = TransferReport(
        [
            TensorOutcome("a", "copied", (99_999, 1)),
            TensorOutcome("b", "fresh", (1, 1)),
            TensorOutcome("c", "ignored", (9,)),
        ]
    )
    assert almost.shares().startswith("99.9 % ")
