"""nnU-Net's Residual-Encoder U-Net as a backbone, from nnU-Net's own building blocks, so that names match."""

from __future__ import annotations

import copy
import difflib
import importlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He, init_last_bn_before_add_to_0
from torch import Tensor, nn

from ssl3d.models.backbone import Backbone, BackboneSpec, check_image, check_normalisable
from ssl3d.regions import Size3

Size = Literal["S", "M", "L", "XL"]

NETWORK_CLASS = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
KW_REQUIRES_IMPORT = ("conv_op", "norm_op", "dropout_op", "nonlin")

# What nnU-Net's ResEnc planners put into every 3D plan.
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
_SMALL = {"features_per_stage": [16, 32, 64, 128], "n_blocks_per_stage": [1, 1, 2, 2]}
_NNUNET = {"features_per_stage": [32, 64, 128, 256, 320, 320], "n_blocks_per_stage": [1, 3, 4, 6, 6, 6]}
_STAGES: dict[str, dict[str, list[int]]] = {"S": _SMALL, "M": _NNUNET, "L": _NNUNET, "XL": _NNUNET}

# Patch (D, H, W) and regions a step and GPU, as nnU-Net plans them for large isotropic scans on 8, 24 and 40 GB.
_RECOMMENDED: dict[str, dict[str, Any]] = {
    "S": {"patch_size": (32, 48, 32), "batch_size": 2},
    "M": {"patch_size": (128, 128, 128), "batch_size": 2},
    "L": {"patch_size": (192, 192, 192), "batch_size": 2},
    "XL": {"patch_size": (256, 224, 224), "batch_size": 2},
}


class FeatureDecoder(UNetDecoder):
    """nnU-Net's decoder without segmentation heads: it returns features, and holds no second name of the encoder."""

    def __init__(self, encoder: ResidualEncoder, n_conv_per_stage: Sequence[int]) -> None:
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


class ResEncUNet(Backbone):
    """nnU-Net's ResidualEncoderUNet without its segmentation heads.

    `size`: `S` is made for CPUs (4 stages, 16-128 features, stride 8). `L` is nnU-Net's ResEnc (6 stages, 32-320
    features, stride 32); `M` and `XL` are the SAME network under nnU-Net's other preset names and differ only in
    `recommended`, the patch and batch that fit their GPU memory. `in_channels`: image channels.
    `arch_kwargs` overrides any of nnU-Net's architecture keys (n_stages, features_per_stage, kernel_sizes, strides,
    n_blocks_per_stage, n_conv_per_stage_decoder, conv_op, norm_op, ...), one entry a stage: the `arch_kwargs` of a
    plans file can be given whole, so that the network is the one nnU-Net planned.

    Scale i of `encode` is the output of stage i, of `decode` the decoder stage at the same resolution; the coarsest
    scale has no decoder stage. Weights are drawn from torch's global generator as nnU-Net draws them (He, the last
    norm of each block zero). Raises ValueError naming the key. Isensee et al., "nnU-Net Revisited", arXiv 2404.09556.
    """

    def __init__(self, size: Size = "L", in_channels: int = 1, arch_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__()
        if size not in _STAGES:
            raise ValueError(f"model.size is {size!r}; it must be one of {', '.join(_STAGES)}")
        if in_channels < 1:
            raise ValueError(f"model.in_channels is {in_channels}; it must be at least 1")
        self.size, self.in_channels = size, in_channels
        self.recommended: dict[str, Any] = copy.deepcopy(_RECOMMENDED[size])
        self._overrides = copy.deepcopy(dict(arch_kwargs)) if arch_kwargs else None
        self.arch_kwargs = complete_arch_kwargs(_STAGES[size], arch_kwargs or {})

        layers = {k: v for k, v in self.arch_kwargs.items() if k != "n_conv_per_stage_decoder"}
        layers |= {k: import_op(k, layers[k]) for k in KW_REQUIRES_IMPORT}
        self.encoder = ResidualEncoder(in_channels, **layers, return_skips=True)
        self.decoder = FeatureDecoder(self.encoder, self.arch_kwargs["n_conv_per_stage_decoder"])
        self.apply(InitWeights_He(1e-2))
        self.apply(init_last_bn_before_add_to_0)

        self.channels = tuple(self.arch_kwargs["features_per_stage"])
        self.strides = tuple(_cumulative(self.arch_kwargs["strides"]))
        self.decoder_channels = self.channels[:-1]

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> one feature map a stage, finest first. Raises ValueError on a wrong size or channel count."""
        check_image(self, x)
        return self.encoder(x)

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """Encoder features -> decoder features of scales down_to, ..., n-2, finest first, before any head."""
        self.check_down_to(down_to)
        return self.decoder(features, down_to)

    def spec(self) -> BackboneSpec:
        """Constructor arguments, and the architecture block that nnU-Net's plans hold."""
        kwargs = {"size": self.size, "in_channels": self.in_channels, "arch_kwargs": copy.deepcopy(self._overrides)}
        architecture = {
            "network_class_name": NETWORK_CLASS,
            "arch_kwargs": copy.deepcopy(self.arch_kwargs),
            "_kw_requires_import": list(KW_REQUIRES_IMPORT),
        }
        return BackboneSpec("ssl3d.models.resenc.ResEncUNet", kwargs, architecture)

    def encoder_parameter_names(self) -> set[str]:
        """Every name below `encoder.`, nnU-Net's aliases (`.conv`, `.all_modules.0`) included."""
        return {name for name in self.state_dict() if name.startswith("encoder.")}

    def check_size(self, size: Sequence[int]) -> None:
        """Raise ValueError when `size` (D,H,W) is no multiple of the stride, or leaves one voxel to normalise."""
        super().check_size(size)
        check_normalisable(self, size)


def complete_arch_kwargs(stages: Mapping[str, list[int]], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A size's defaults and a user's overrides -> nnU-Net's arch_kwargs, every key present, one entry a stage.

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
        "features_per_stage": _integers("features_per_stage", given["features_per_stage"], n),
        "conv_op": given.get("conv_op", _LAYERS["conv_op"]),
        "kernel_sizes": _triples("kernel_sizes", given.get("kernel_sizes", [3] * n), n),
        "strides": _triples("strides", given.get("strides", default_strides), n),
        "n_blocks_per_stage": _integers("n_blocks_per_stage", given["n_blocks_per_stage"], n),
        "n_conv_per_stage_decoder": _integers(
            "n_conv_per_stage_decoder", given.get("n_conv_per_stage_decoder", [1] * (n - 1)), n - 1
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


def _cumulative(strides: Sequence[Sequence[int]]) -> list[Size3]:
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
