"""nnU-Net's U-Nets as backbones: what ResEncUNet and PlainConvUNet share, from nnU-Net's own building blocks."""

from __future__ import annotations

import copy
import difflib
import importlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from ssl3d.models.backbone import BackboneSpec, StagedBackbone, check_image, check_normalisable, outermost
from ssl3d.regions import Size3

KW_REQUIRES_IMPORT = ("conv_op", "norm_op", "dropout_op", "nonlin")

# What nnU-Net's planners put into every 3D plan.
_LAYERS: dict[str, Any] = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


class FeatureDecoder(UNetDecoder):
    """nnU-Net's decoder without segmentation heads: it returns features, and holds no second name of the encoder."""

    def __init__(self, encoder: PlainConvEncoder | ResidualEncoder, n_conv_per_stage: Sequence[int]) -> None:
        super().__init__(encoder, num_classes=1, n_conv_per_stage=list(n_conv_per_stage), deep_supervision=False)
        del self.seg_layers  # an unused parameter would be saved, decayed and waited for by DDP
        del self.encoder  # nnU-Net registers it again as decoder.encoder; the export restores that name

    def forward(self, skips: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """Encoder features, finest first -> decoder features of scales down_to, ..., n-2, finest first."""
        x = skips[-1]
        outputs = []
        for s in range(len(self.stages) - down_to):
            x = self.stages[s](torch.cat((self.transpconvs[s](x), skips[-(s + 2)]), 1))
            outputs.append(x)
        return outputs[::-1]


class NNUNetBackbone(StagedBackbone):
    """An encoder and decoder of nnU-Net's without segmentation heads; subclasses say which.

    Scale i of `encode` is the output of stage i, of `decode` the decoder stage at the same resolution; the coarsest
    scale has no decoder stage. `target`: the subclass's import path; `network_class`: its network's in a plans file;
    `stem`: the weight that depends on the number of image channels.
    """

    target: str
    network_class: str
    stem: str

    def __init__(
        self,
        size: str,
        in_channels: int,
        arch_kwargs: dict[str, Any] | None,
        encoder_class: type[PlainConvEncoder] | type[ResidualEncoder],
        stages: Mapping[str, Mapping[str, list[int]]],
        decoder_convs: int,
    ) -> None:
        super().__init__()
        if size not in stages:
            raise ValueError(f"model.size is {size!r}; it must be one of {', '.join(stages)}")
        if in_channels < 1:
            raise ValueError(f"model.in_channels is {in_channels}; it must be at least 1")
        self.size, self.in_channels = size, in_channels
        self._overrides = copy.deepcopy(dict(arch_kwargs)) if arch_kwargs else None
        self.arch_kwargs = complete_arch_kwargs(stages[size], arch_kwargs or {}, decoder_convs)

        layers = {k: v for k, v in self.arch_kwargs.items() if k != "n_conv_per_stage_decoder"}
        layers |= {k: import_op(k, layers[k]) for k in KW_REQUIRES_IMPORT}
        self.encoder = encoder_class(in_channels, **layers, return_skips=True)
        self.decoder = FeatureDecoder(self.encoder, self.arch_kwargs["n_conv_per_stage_decoder"])

        self.channels = tuple(self.arch_kwargs["features_per_stage"])
        self.strides = tuple(cumulative(self.arch_kwargs["strides"]))
        self.decoder_channels = self.channels[:-1]

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> one feature map a stage, finest first. Raises ValueError on a wrong size or channel count."""
        check_image(self, x)
        return self.encoder(x)

    def encoder_stages(self) -> list[list[nn.Module]]:
        """nnU-Net's stages; the stem, where there is one, belongs to the first."""
        stages = [[stage] for stage in self.encoder.stages]
        stem = getattr(self.encoder, "stem", None)
        return [[stem, *stages[0]], *stages[1:]] if stem is not None else stages

    def segments(self) -> list[nn.Module]:
        """Stem, residual blocks and decoder stages; of a plain encoder, its stages."""
        return outermost(self, (BasicBlockD, BottleneckD, StackedConvBlocks))

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """Encoder features -> decoder features of scales down_to, ..., n-2, finest first, before any head."""
        self.check_down_to(down_to)
        return self.decoder(features, down_to)

    def spec(self) -> BackboneSpec:
        """Constructor arguments, and the architecture block that nnU-Net's plans hold."""
        kwargs = {"size": self.size, "in_channels": self.in_channels, "arch_kwargs": copy.deepcopy(self._overrides)}
        architecture = {
            "network_class_name": self.network_class,
            "arch_kwargs": copy.deepcopy(self.arch_kwargs),
            "_kw_requires_import": list(KW_REQUIRES_IMPORT),
        }
        return BackboneSpec(self.target, kwargs, architecture)

    def encoder_parameter_names(self) -> set[str]:
        """Every name below `encoder.`, nnU-Net's aliases (`.conv`, `.all_modules.0`) included."""
        return {name for name in self.state_dict() if name.startswith("encoder.")}

    def check_size(self, size: Sequence[int]) -> None:
        """Raise ValueError when `size` (D,H,W) is no multiple of the stride, or leaves one voxel to normalise."""
        super().check_size(size)
        check_normalisable(self, size)


def complete_arch_kwargs(
    stages: Mapping[str, list[int]], overrides: Mapping[str, Any], decoder_convs: int
) -> dict[str, Any]:
    """A size's defaults and a user's overrides -> nnU-Net's arch_kwargs, every key present, one entry a stage.

    `stages`: defaults of `features_per_stage` and of how many blocks or convolutions a stage has, by nnU-Net's name of
    that; `decoder_convs`: default of convolutions a decoder stage.
    Raises ValueError naming the key: unknown keys, lists of the wrong length, kernels and strides that cannot be.
    """
    known = ["n_stages", *stages, "kernel_sizes", "strides", "n_conv_per_stage_decoder", *_LAYERS]
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"unknown key 'model.arch_kwargs.{key}'; {hint}")
    given = {**stages, **overrides}
    n = given.get("n_stages", len(_sequence("features_per_stage", given["features_per_stage"])))
    if not isinstance(n, int) or n < 2:
        raise ValueError(f"model.arch_kwargs.n_stages is {n!r}; it must be a whole number of at least 2")
    default_strides = [1] + [2] * (n - 1)
    full = {
        "n_stages": n,
        **{key: _integers(key, given[key], n) for key in stages},
        "conv_op": given.get("conv_op", _LAYERS["conv_op"]),
        "kernel_sizes": _triples("kernel_sizes", given.get("kernel_sizes", [3] * n), n),
        "strides": _triples("strides", given.get("strides", default_strides), n),
        "n_conv_per_stage_decoder": _integers(
            "n_conv_per_stage_decoder", given.get("n_conv_per_stage_decoder", [decoder_convs] * (n - 1)), n - 1
        ),
        **{k: copy.deepcopy(given.get(k, v)) for k, v in _LAYERS.items() if k != "conv_op"},
    }
    for i, kernel in enumerate(full["kernel_sizes"]):
        if any(k % 2 == 0 for k in kernel):
            raise ValueError(f"model.arch_kwargs.kernel_sizes[{i}] is {kernel}; kernels must be odd to keep the size")
    return full


def _sequence(key: str, value: Any) -> list[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    raise ValueError(f"model.arch_kwargs.{key} is {value!r}; it must be a list with one entry a stage")


def _integers(key: str, value: Any, n: int) -> list[int]:
    items = _sequence(key, value)
    if len(items) != n or any(not isinstance(i, int) or isinstance(i, bool) or i < 1 for i in items):
        raise ValueError(f"model.arch_kwargs.{key} is {items}; it must hold {n} whole numbers of at least 1")
    return items


def _triples(key: str, value: Any, n: int) -> list[list[int]]:
    items = [[i] * 3 if isinstance(i, int) else _sequence(key, i) for i in _sequence(key, value)]
    if len(items) != n or any(len(t) != 3 or any(not isinstance(i, int) or i < 1 for i in t) for t in items):
        raise ValueError(f"model.arch_kwargs.{key} is {value}; it must hold {n} triples of whole numbers (D, H, W)")
    return items


def cumulative(strides: Sequence[Sequence[int]]) -> list[Size3]:
    """Stride of each stage to the one before -> stride of each stage to the image."""
    products = itertools.accumulate(strides, lambda a, b: [i * j for i, j in zip(a, b)])
    return [(d, h, w) for d, h, w in products]


def import_op(key: str, path: str | None) -> type[nn.Module] | None:
    """The torch.nn class nnU-Net names by its import path; only torch.nn is looked into, as YAML is not code."""
    if path is None and key != "conv_op":
        return None
    module, _, name = str(path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None) if f"{module}.".startswith("torch.nn.") else None
    except ModuleNotFoundError:
        found = None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"model.arch_kwargs.{key} is {path!r}; it must be the import path of a torch.nn module")
    if key == "conv_op" and found is not nn.Conv3d:
        raise ValueError(f"model.arch_kwargs.conv_op is {path!r}; only {_LAYERS['conv_op']} is supported")
    return found
