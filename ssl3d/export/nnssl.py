"""Weights for the nnssl ecosystem: nnU-Net's pre-training branch (`nnUNetv2_train_pretrained`) and OpenMind's hub.

A folder as that hub's: checkpoint_final.pth with every key that nnssl's readers access, adaptation_plan.json and
config.json. The readers take encoder and stem alone, by the keys of the adaptation plan; they spread the stem over
other numbers of channels themselves and resize a Primus's positions. The decoder is in the file for readers that want
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ssl3d.export import nnunet_primus
from ssl3d.export.folder import ExportFolder
from ssl3d.export.nnunet import build_network, save_and_compare
from ssl3d.export.nnunet_adapt import fill
from ssl3d.export.report import ExportReport
from ssl3d.export.source import Source
from ssl3d.models.backbone import Backbone
from ssl3d.models.init import aliases, check_finite
from ssl3d.models.primus import Primus, PrimusV2
from ssl3d.models.transfer import TensorOutcome

_PATCH = [160, 160, 160]  # of nnssl's own pre-training, where ours is not known
_CITATIONS = {
    "ResidualEncoderUNet": (
        "ResEnc",
        "Isensee, F., Wald, T., Ulrich, C., Baumgartner, M., Roy, S., Maier-Hein, K., & Jaeger, P. F. (2024). nnU-Net "
        "Revisited: A Call for Rigorous Validation in 3D Medical Image Segmentation. arXiv:2404.09556.",
    ),
    "PlainConvUNet": (
        "nnU-Net",
        "Isensee, F., Jaeger, P. F., Kohl, S. A. A., Petersen, J., & Maier-Hein, K. H. (2021). nnU-Net: a "
        "self-configuring method for deep learning-based biomedical image segmentation. Nature Methods, 18, 203-211.",
    ),
    "Primus": (
        "Primus",
        "Wald, T., Roy, S., Isensee, F., Ulrich, C., Ziegler, S., Trofimova, D., Stock, R., Baumgartner, M., Koehler, "
        "G., & Maier-Hein, K. (2025). Primus: Enforcing Attention Usage for 3D Medical Image Segmentation. "
        "arXiv:2503.01835.",
    ),
}


@dataclass(frozen=True)
class Network:
    """A filled network in nnssl's terms: `name` of its class, `kwargs`, which of them are import paths, its record."""

    module: nn.Module
    name: str
    kwargs: dict[str, Any]
    imports: list[str]
    tensors: list[TensorOutcome]


def export_nnssl(source: Source | Backbone, out: Path, strict: bool = False) -> ExportReport:
    """Write checkpoint_final.pth, adaptation_plan.json, config.json and the report to `out`.

    `strict`: refuse a run whose decoder is fresh. Raises ValueError when nnssl has no such network, or on NaN or Inf.
    """
    source = Source(source) if isinstance(source, Backbone) else source
    check_finite(source.backbone.state_dict(), "the run")
    network = _network(source)
    report = ExportReport.of(source, "nnssl")
    report.tensors = network.tensors
    if strict:
        report.refuse_inexact("--to nnssl")
    plan = adaptation_plan(source, network)
    if not source.provenance.get("spacing"):
        report.notes.append("the spacing of the pre-training is not known: the plan says null")
    if not source.trained_decoder:
        report.notes.append("the decoder is fresh: this run trained the encoder only, which is all that nnssl takes")
    state = dict(network.module.state_dict())
    content = {"network_weights": state, "nnssl_adaptation_plan": plan, "ssl3d": report.provenance}
    names = aliases(network.module)
    config = {
        "library_name": "ssl3d",
        "architecture": network.name,
        "in_channels": source.backbone.in_channels,
        "patch_size": plan["pretrain_patch_size"],
        "spacing": source.provenance.get("spacing"),
    }
    with ExportFolder(out, "nnssl") as folder:
        folder.write("checkpoint_final.pth", lambda path: save_and_compare(content, names, path))
        folder.write_json("adaptation_plan.json", plan)
        folder.write_json("config.json", config)
        report.write(folder)
    return report


def adaptation_plan(source: Source, network: Network) -> dict[str, Any]:
    """What nnssl's readers look up, in plain types; `architecture_kwargs` is for nnU-Net's dynamic loader."""
    recommended = getattr(source.backbone, "recommended", {"patch_size": _PATCH})["patch_size"]
    if isinstance(source.backbone, Primus):
        recommended = source.backbone.input_size
    patch = list(source.patch_size or recommended)
    spacing = source.provenance.get("spacing")
    windows = (source.provenance.get("normalisation") or {}).get("modalities") or {}
    scheme = "CTNormalization" if list(windows) == ["ct"] else "ZScoreNormalization"
    configuration = {
        "data_identifier": "ssl3d",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": "onemmiso" if spacing == [1.0, 1.0, 1.0] else "median" if spacing else "noresample",
        "spacing": spacing,
        "patch_size": patch,
        "batch_size": source.batch_size or 2,
        "normalization_schemes": [scheme] * source.backbone.in_channels,
    }
    module: Any = network.module
    kind, apa = _CITATIONS[network.name if network.name in _CITATIONS else "Primus"]
    return {
        "architecture_plans": {
            "arch_class_name": network.name,
            "arch_kwargs": network.kwargs,
            "arch_kwargs_requiring_import": network.imports,
        },
        "architecture_kwargs": network.kwargs,
        "pretrain_plan": {
            "dataset_name": "ssl3d",
            "plans_name": "ssl3d",
            "configurations": {configuration["spacing_style"]: configuration},
        },
        "pretrain_num_input_channels": source.backbone.in_channels,
        "pretrain_patch_size": patch,
        "recommended_downstream_patchsize": patch,
        "key_to_encoder": module.key_to_encoder,
        "key_to_stem": module.key_to_stem,
        "keys_to_in_proj": list(module.keys_to_in_proj),
        "key_to_lpe": getattr(module, "key_to_lpe", None),
        "citations": [{"type": "Architecture", "name": kind, "apa_citations": [apa]}],
    }


def _network(source: Source) -> Network:
    """The network that nnssl builds, filled. Raises ValueError when it has none like this."""
    backbone = source.backbone
    architecture = backbone.spec().architecture
    if architecture is not None:
        module = build_network(architecture, backbone.in_channels)
        name = architecture["network_class_name"].rpartition(".")[2]
        imports = list(architecture["_kw_requires_import"])
        return Network(module, name, architecture["arch_kwargs"], imports, fill(module, source))
    if (
        isinstance(backbone, Primus)
        and not isinstance(backbone, PrimusV2)
        and backbone.size in nnunet_primus.SIZES_BUILT
    ):
        kwargs = nnunet_primus.network_kwargs(backbone, list(backbone.input_size))
        classes = backbone.decoder_channels[0]  # of the run's own decoder, so that it fits too
        module = nnunet_primus.build(backbone, backbone.in_channels, classes, kwargs)
        tensors = nnunet_primus.fill(module, source, list(backbone.input_size), classes=False)
        return Network(module, f"Primus{backbone.size}", kwargs, [], tensors)
    size = f" of size {backbone.size}" if isinstance(backbone, Primus) else ""
    raise ValueError(
        f"nnssl has no network like {type(backbone).__name__}{size}: only ResEncUNet, PlainConvUNet and Primus S, B, "
        "M, L can be exported"
    )
