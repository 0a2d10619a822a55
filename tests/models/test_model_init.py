"""load_weights: exact names and shapes, nothing half done, a report tensor by tensor."""

import pytest
import torch

from ssl3d.models.init import aliases, load_weights
from ssl3d.models.resenc import ResEncUNet
from ssl3d.testing.backbone import randomise

ARCH = {"features_per_stage": [4, 6, 8], "n_blocks_per_stage": [1, 1, 1]}


def network(seed: int, **kwargs) -> ResEncUNet:
    backbone = ResEncUNet("S", **{"arch_kwargs": ARCH, **kwargs})
    randomise(backbone, seed)
    return backbone


def snapshot(backbone):
    return {k: v.clone() for k, v in backbone.state_dict().items()}


def test_all_tensors_are_copied():
    source, target = network(1), network(2)
    report = load_weights(target, source.state_dict())
    assert set(report.names("copied")) == set(aliases(target))
    assert report.summary() == f"{len(aliases(target))} copied"
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())


def test_one_name_of_each_alias_is_enough():
    source, target = network(1), network(2)
    last_names = {group[-1]: source.state_dict()[group[-1]] for group in aliases(source).values()}
    load_weights(target, last_names)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())


def test_encoder_alone():
    source, target = network(1), network(2)
    before = snapshot(target)
    report = load_weights(target, source.state_dict(), part="encoder")
    encoder = target.encoder_parameter_names()
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name] if name in encoder else before[name])
    assert set(report.names("fresh")) == {n for n in aliases(target) if n not in encoder}


def test_what_is_missing_stays_fresh_and_what_is_unknown_is_ignored():
    source, target = network(1), network(2)
    before = snapshot(target)
    state = {k: v for k, v in source.state_dict().items() if k.startswith("encoder.")} | {"head.weight": torch.ones(3)}
    with pytest.raises(ValueError, match=r"the weights: there is no tensor 'decoder\."):
        load_weights(target, state)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    report = load_weights(target, state, strict=False, source="run A")
    assert report.names("ignored") == ["head.weight"]
    assert all(t.reason == "not in run A" for t in report.tensors if t.outcome == "fresh")
    assert torch.equal(target.state_dict()["decoder.transpconvs.0.weight"], before["decoder.transpconvs.0.weight"])


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda s: s["encoder.stem.convs.0.conv.weight"].fill_(torch.nan), "holds NaN or Inf"),
        (lambda s: s.update({"decoder.transpconvs.0.bias": torch.ones(5)}), r"is \(5,\), this model needs \(6,\)"),
        (
            lambda s: s.update({"encoder.stem.convs.0.all_modules.0.weight": torch.ones(4, 1, 3, 3, 3)}),
            "are one tensor in this model but differ",
        ),
    ],
)
def test_damaged_weights_are_refused_and_nothing_changes(fault, message, strict):
    target = network(2)
    before, state = snapshot(target), snapshot(network(1))
    fault(state)
    with pytest.raises(ValueError, match=message):
        load_weights(target, state, strict=strict)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_weights_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="none of the 1 tensors has a name"):
        load_weights(network(1), {"a": torch.ones(1)}, strict=False)


def test_report_is_plain():
    report = load_weights(network(1), network(2).state_dict()).to_dict()
    assert report["summary"].endswith("copied")
    assert report["tensors"][0] == {
        "name": "encoder.stem.convs.0.conv.weight",
        "outcome": "copied",
        "shape": [4, 1, 3, 3, 3],
        "reason": "",
        "part": "encoder",
    }
