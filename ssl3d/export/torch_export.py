"""The encoder as a graph: encoder.pt2, which torch.export.load reads without ssl3d."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl3d.export.folder import ExportFolder
from ssl3d.export.report import ExportReport
from ssl3d.export.source import Source
from ssl3d.models.backbone import Backbone
from ssl3d.models.init import aliases, check_finite
from ssl3d.models.primus import Primus
from ssl3d.models.transfer import TensorOutcome
from ssl3d.regions import Size3
from ssl3d.seeding import mix

TOLERANCE = 1e-3  # of the largest feature: kernels may be fused and sums reordered


class Encoder(nn.Module):
    """An image (B,C,D,H,W) -> the features of every scale, finest first, as a tuple."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B,C,D,H,W) -> (B,channels[i],D/s_i,H/s_i,W/s_i) a scale."""
        return tuple(self.backbone.encode(image))


def export_torch_export(source: Source | Backbone, out: Path, strict: bool = False) -> ExportReport:
    """Write encoder.pt2 (torch.export), encoder.json (its inputs and outputs) and the report to `out`.

    One image of the size of the pre-training goes in (batch 1), all scales of features come out. The graph is loaded
    again and compared with the network; the greatest difference is in the notes. `strict`: nothing is ever adapted.
    Raises ValueError on NaN or Inf, and when the graph gives other features.
    """
    source = Source(source) if isinstance(source, Backbone) else source
    report, encoder, image = prepare(source, "torch.export")
    with torch.no_grad():
        program = torch.export.export(encoder, (image,), strict=False)

    def write(part: Path) -> None:
        with part.open("wb") as file:  # by its name torch.export would want .pt2
            torch.export.save(program, file)

    with ExportFolder(out, "torch_export") as folder:
        with folder.write("encoder.pt2", write).open("rb") as file, torch.no_grad():
            found = torch.export.load(file).module()(image)
        report.notes.append(compare(encoder, image, list(found), "the graph"))
        finish(report, source, image, folder)
    return report


def prepare(source: Source, target: str) -> tuple[ExportReport, Encoder, Tensor]:
    """The record, the encoder and the image (1,C,D,H,W) that its graph is traced with: seeded noise."""
    backbone = source.backbone.eval()
    check_finite(backbone.state_dict(), "the run")
    names, state = backbone.encoder_parameter_names(), backbone.state_dict()
    report = ExportReport.of(source, target)
    for name in aliases(backbone):
        shape = tuple(state[name].shape)
        if name in names:
            report.tensors.append(TensorOutcome(name, "copied", shape))
        else:
            report.tensors.append(TensorOutcome(name, "ignored", shape, "the graph is the encoder's", "decoder"))
    generator = torch.Generator().manual_seed(mix(0, "graph export"))
    image = torch.randn(1, backbone.in_channels, *_size(source), generator=generator)
    return report, Encoder(backbone).eval().requires_grad_(False), image


def compare(encoder: Encoder, image: Tensor, found: Sequence[Tensor], what: str) -> str:
    """The greatest difference between the network's features and those `found`, as a note.

    Raises ValueError when it is more than TOLERANCE of the largest feature of its scale.
    """
    with torch.no_grad():
        wanted = encoder(image)
    worst = 0.0
    for scale, (a, b) in enumerate(zip(wanted, found, strict=True)):
        worst = max(worst, difference := float((a - b).abs().max()))
        if difference > TOLERANCE * float(a.abs().max()):
            raise ValueError(f"{what} gives other features than the network: scale {scale} differs by {difference:.3g}")
    return f"{what} was run again on noise: its features differ from the network's by {worst:.2g} at most"


def finish(report: ExportReport, source: Source, image: Tensor, folder: ExportFolder) -> None:
    """encoder.json beside the graph, and the report."""
    backbone = source.backbone
    content = {
        "input": {"name": "image", "shape": list(image.shape), "dtype": "float32", "axes": "B, C, D, H, W"},
        "outputs": [
            {"name": f"scale_{i}", "channels": channels, "stride": list(stride)}
            for i, (channels, stride) in enumerate(zip(backbone.channels, backbone.strides))
        ],
        "provenance": report.provenance,
    }
    folder.write_json("encoder.json", content)
    report.write(folder)


def _size(source: Source) -> Size3:
    """The patch of the pre-training, or one that the network can take."""
    if source.patch_size is not None:
        return source.patch_size
    if isinstance(source.backbone, Primus):
        return source.backbone.input_size
    d, h, w = (max(2 * stride, 32 // stride * stride) for stride in source.backbone.total_stride)
    return (d, h, w)
