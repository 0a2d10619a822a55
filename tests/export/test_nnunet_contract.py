"""The ways in which a checkpoint for nnU-Net can be wrong (taken silently or refused there): none can be made."""

import copy
import json

import pytest
import torch

from ssl3d.export.nnunet import build_network, export_nnunet
from ssl3d.export.source import Source
from ssl3d.models.init import aliases
from ssl3d.models.resenc import ResEncUNet


@pytest.fixture(params=["own", "planned"])
def checkpoint(request, backbone, plans_file, tmp_path):
    """What is written for two channels from a half-precision encoder, and the architecture that is configured."""
    path = plans_file(2)
    content = json.loads(path.read_text())
    block = copy.deepcopy(backbone.spec().architecture)
    block["arch_kwargs"]["kernel_sizes"] = [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
    content["configurations"]["3d_fullres"]["architecture"] = block
    path.write_text(json.dumps(content))
    source = Source(copy.deepcopy(backbone).half(), trained_decoder=False)
    export_nnunet(source, tmp_path / "out", plans=path, architecture=request.param)
    configured = json.loads(path.read_text())["configurations"]["3d_fullres_ssl3d"]
    return torch.load(tmp_path / "out" / "checkpoint.pth", weights_only=True), configured["architecture"]


def test_no_way_to_be_wrong_is_left(checkpoint, backbone):
    content, architecture = checkpoint
    weights = content["network_weights"]  # neither a bare dict nor `state_dict`
    network = build_network(architecture, 2)  # what the plans say: kind, stages, strides, kernels
    target = network.state_dict()
    assert list(weights) == list(target)  # no prefix; neither encoder alone nor names without their aliases
    for name, value in weights.items():
        assert value.shape == target[name].shape, name  # the stem's two channels too
        assert value.dtype == torch.float32 and value.device.type == "cpu" and torch.isfinite(value).all()
    for names in aliases(network).values():
        assert all(torch.equal(weights[name], weights[names[0]]) for name in names)  # no stale `decoder.encoder`
    given = backbone.state_dict()
    same = [n for n, v in given.items() if n.startswith("encoder.") and v.shape == weights[n].shape]
    assert len(same) > 20
    for name in same:
        torch.testing.assert_close(weights[f"decoder.{name}"], given[name].half().float(), rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, value):
    backbone = ResEncUNet("S")
    with torch.no_grad():
        backbone.encoder.stages[1].blocks[0].conv1.norm.bias[3] = value
    with pytest.raises(ValueError, match=r"'encoder.stages.1.blocks.0.conv1.norm.bias' holds NaN or Inf"):
        export_nnunet(backbone, tmp_path / "out")
    assert not (tmp_path / "out").exists()
