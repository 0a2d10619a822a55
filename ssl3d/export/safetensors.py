"""Weights as a .safetensors file: encoder and decoder in float32, one name a tensor, and a JSON file beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ssl3d.export.folder import ExportFolder
from ssl3d.export.report import ExportReport
from ssl3d.export.source import Source
from ssl3d.models.backbone import Backbone
from ssl3d.models.init import aliases, check_finite
from ssl3d.models.transfer import Part, TensorOutcome


def export_safetensors(source: Source | Backbone, out: Path, strict: bool = False) -> ExportReport:
    """Write model.safetensors and model.json (the backbone's spec and its provenance) to `out`.

    Tensors of one storage (nnU-Net's aliases) are written once, under their first name; load_weights reads them back.
    A decoder that was not trained is left out. Raises ValueError on NaN or Inf, with `strict` when the decoder is left
    out, and when the safetensors library is missing.
    """
    source = Source(source) if isinstance(source, Backbone) else source
    with ExportFolder(out, "safetensors") as folder:
        report = write_tensors(source, folder, "safetensors", strict)
        report.write(folder)
    return report


def write_tensors(source: Source, folder: ExportFolder, target: str, strict: bool) -> ExportReport:
    """model.safetensors and model.json; the report is not written yet."""
    try:
        from safetensors.torch import save_file
    except ModuleNotFoundError:
        raise ValueError("--to safetensors needs the safetensors library: pip install safetensors") from None
    backbone = source.backbone
    state = backbone.state_dict()
    check_finite(state, "the run")
    encoder = backbone.encoder_parameter_names()
    report = ExportReport.of(source, target)
    tensors = {}
    for name in aliases(backbone):
        shape = tuple(state[name].shape)
        part: Part = "encoder" if name in encoder else "decoder"
        if name in encoder or source.trained_decoder:
            value = state[name].detach().cpu()
            tensors[name] = (value.float() if value.is_floating_point() else value).contiguous()
            report.tensors.append(TensorOutcome(name, "copied", shape, part=part))
        elif strict:
            raise ValueError(f"--strict: '{name}' belongs to the decoder, which this run did not train")
        else:
            report.tensors.append(TensorOutcome(name, "ignored", shape, "the run did not train its decoder", part))
    content = {
        "backbone": dataclasses.asdict(backbone.spec()),
        "tensors": {name: list(value.shape) for name, value in tensors.items()},
        "provenance": report.provenance,
    }
    folder.write("model.safetensors", lambda path: save_file(tensors, path, {"format": "pt"}))
    folder.write_json("model.json", content)
    return report
