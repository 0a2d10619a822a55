"""The encoder as a graph, run again by what reads it: the same features, the greatest difference stated."""

import importlib.util
import json
import re

import pytest
import torch

from ssl3d.export import onnx as onnx_target
from ssl3d.export.onnx import export_onnx
from ssl3d.export.source import Source
from ssl3d.export.torch_export import compare, export_torch_export, prepare
from ssl3d.models.primus import Primus
from ssl3d.testing.backbone import randomise


@pytest.mark.parametrize("make", [None, lambda: Primus("tiny", in_channels=2, input_size=(16, 24, 32))])
def test_a_saved_graph_gives_the_networks_features(backbone, tmp_path, make):
    network = randomise(make()).eval() if make else backbone
    source = Source(network) if make else Source(network, patch_size=(8, 24, 16))
    report = export_torch_export(source, tmp_path)
    graph = torch.export.load(tmp_path / "encoder.pt2").module()
    content = json.loads((tmp_path / "encoder.json").read_text())
    x = torch.randn(content["input"]["shape"])
    with torch.no_grad():
        features = graph(x)
        for a, b, said in zip(features, network.encode(x), content["outputs"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            assert a.shape[1] == said["channels"]
    assert re.search(r"differ from the network's by [0-9.e-]+ at most", report.text())
    assert not set(report.names("ignored")) & network.encoder_parameter_names()


def test_a_graph_that_gives_other_features_is_refused(backbone):
    _, encoder, image = prepare(Source(backbone, patch_size=(8, 24, 16)), "test")
    features = [f.clone() for f in encoder(image)]
    features[1] += 1
    with pytest.raises(ValueError, match="the graph gives other features than the network: scale 1 differs by 1"):
        compare(encoder, image, features, "the graph")


def test_onnx_without_its_libraries_says_how_to_get_them(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_target, "NEEDED", ("onnx", "no_such_library"))
    with pytest.raises(ValueError, match=r"--to onnx needs .*no_such_library: pip install 'ssl3d\[onnx\]'"):
        export_onnx(backbone, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime (pip install '.[onnx]')",
)
def test_onnx_runtime_gives_the_networks_features(backbone, tmp_path):
    report = export_onnx(Source(backbone, patch_size=(8, 24, 16)), tmp_path)
    assert (tmp_path / "encoder.onnx").stat().st_size > 10_000
    assert "ONNX Runtime was run again" in report.text()
