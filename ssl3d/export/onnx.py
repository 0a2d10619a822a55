"""The encoder as an ONNX graph: encoder.onnx, for ONNX Runtime, TensorRT, OpenVINO."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from ssl3d.export.folder import ExportFolder
from ssl3d.export.report import ExportReport
from ssl3d.export.source import Source
from ssl3d.export.torch_export import compare, finish, prepare
from ssl3d.models.backbone import Backbone

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def is_installed(name: str) -> bool:
    """Whether a library can be imported."""
    return importlib.util.find_spec(name) is not None


def export_onnx(source: Source | Backbone, out: Path, strict: bool = False) -> ExportReport:
    """Write encoder.onnx, encoder.json (its inputs and outputs) and the report to `out`.

    One image of the size of the pre-training goes in (batch 1), all scales of features come out. ONNX Runtime runs the
    graph and its features are compared with the network's; the greatest difference is in the notes. `strict`: nothing
    is ever adapted. Raises ValueError on NaN or Inf, when the libraries are missing, and when the graph gives other
    features.
    """
    if missing := [name for name in NEEDED if not is_installed(name)]:
        raise ValueError(f"--to onnx needs {', '.join(missing)}: pip install 'ssl3d[onnx]'")
    import onnxruntime

    source = Source(source) if isinstance(source, Backbone) else source
    report, encoder, image = prepare(source, "ONNX")
    names = [f"scale_{i}" for i in range(len(source.backbone.channels))]

    def write(part: Path) -> None:
        with torch.no_grad():
            torch.onnx.export(
                encoder, (image,), str(part), input_names=["image"], output_names=names, dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip

    with ExportFolder(out, "onnx") as folder:
        path = folder.write("encoder.onnx", write)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = [torch.from_numpy(value) for value in session.run(names, {"image": image.numpy()})]
        report.notes.append(compare(encoder, image, found, "ONNX Runtime"))
        finish(report, source, image, folder)
    return report
