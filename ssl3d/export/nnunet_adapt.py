"""Fit the weights of one nnU-Net network into another: channels, kernels, strides, stages at the deep end.

What changes the function as little as it can be changed, and nothing else:

- Image channels: one is repeated over C and divided by C, so that C equal channels give what one gave.
- Kernels: a larger one is the smaller one with zeros around it, the same function. A kernel of 1 along an axis is the
  mean along it, which gives the same on images that do not change along that axis: the instance norm behind every
  convolution takes the factor back.
- Strides: the encoder's weights do not depend on them. A transposed convolution of another stride is repeated (nearest
  neighbours) or averaged along the axis.
- Stages at the deep end: those that both networks have are filled, the decoder's scale by scale; more are fresh. So are
  residual blocks behind the trained ones of a stage, which nnU-Net starts as near identities.

Everything else (the kind of network, features, fewer blocks, other layers) is refused in words: `first_difference`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl3d.export.source import Source
from ssl3d.models.init import aliases
from ssl3d.models.transfer import Part, TensorOutcome

HEADS = ".seg_layers."
_BLOCKS = ("n_blocks_per_stage", "n_conv_per_stage")
_LAYERS = {
    "conv_op": "convolutions",
    "conv_bias": "convolution biases",
    "norm_op": "normalisation",
    "norm_op_kwargs": "normalisation settings",
    "dropout_op": "dropout",
    "nonlin": "activation",
    "nonlin_kwargs": "activation settings",
}


def same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two architecture blocks are one network."""
    return ours["network_class_name"] == theirs["network_class_name"] and _plain(ours["arch_kwargs"]) == _plain(
        theirs["arch_kwargs"]
    )


def first_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """Why the network `theirs` cannot be filled from `ours` (architecture blocks), in words; None when it can."""
    kind, own_kind = (str(block["network_class_name"]).rpartition(".")[2] for block in (theirs, ours))
    if kind != own_kind:
        return f"it is a {kind} there and a {own_kind} in the run"
    there, run = _plain(theirs["arch_kwargs"]), _plain(ours["arch_kwargs"])
    for key, words in _LAYERS.items():
        if there.get(key) != run.get(key):
            return f"{words} ({key}) are {there.get(key)} there and {run.get(key)} in the run"
    for key, value in there.items():
        if key not in run and value not in (None, False, 0):
            return f"it has {key} = {value} there, which the run's network knows nothing of"
    common = min(there["n_stages"], run["n_stages"])
    for i in range(common):
        if (a := there["features_per_stage"][i]) != (b := run["features_per_stage"][i]):
            return f"stage {i} has {a} features there and {b} in the run"
        for key in _BLOCKS:
            a, b = there.get(key, [0] * common)[i], run.get(key, [0] * common)[i]
            if a < b or (a != b and key == "n_conv_per_stage"):
                return f"stage {i} has {a} {'blocks' if key == _BLOCKS[0] else 'convolutions'} there and {b} in the run"
        for axis, a, b in zip("DHW", there["kernel_sizes"][i], run["kernel_sizes"][i]):
            if 1 < a < b:
                return f"stage {i} has a kernel of {a} along {axis} there and {b} in the run"
        pools, pooled = there["strides"][i], run["strides"][i]
        if (max(pools) > 1) != (max(pooled) > 1):
            return f"stage {i} has strides {pools} there and {pooled} in the run"
        for axis, a, b in zip("DHW", pools, pooled):
            if 1 not in (a, b) and a != b:
                return f"stage {i} has a stride of {a} along {axis} there and {b} in the run"
    for scale in range(common - 1):
        a, b = (kwargs["n_conv_per_stage_decoder"][kwargs["n_stages"] - 2 - scale] for kwargs in (there, run))
        if a != b:
            return f"the decoder has {a} convolutions at scale {scale} there and {b} in the run"
    return None


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What was adapted between two networks of which `first_difference` is None, one sentence each."""
    there, run = _plain(theirs["arch_kwargs"]), _plain(ours["arch_kwargs"])
    n, m = there["n_stages"], run["n_stages"]
    notes = []
    if n < m:
        notes.append(f"the planned network has {n} stages, the run's {m}: its deepest {m - n} are left out")
    if n > m:
        notes.append(f"the planned network has {n} stages, the run's {m}: the deepest {n - m} are fresh")
    for i in range(min(n, m)):
        pools, pooled = there["strides"][i], run["strides"][i]
        if pools != pooled:
            notes.append(f"stage {i} pools by {pools}, in the run by {pooled}: the same weights on another grid")
    return notes


def fill(network: nn.Module, source: Source) -> list[TensorOutcome]:
    """Copy the backbone's tensors into nnU-Net's network, adapted where need be; one outcome a tensor of the latter.

    The two networks must have no `first_difference`.
    """
    given = source.backbone.state_dict()
    encoder = source.backbone.encoder_parameter_names()
    target = network.state_dict()
    depths = [_stages(names) for names in (target, given)]
    outcomes = []
    for name in aliases(network):
        shape = tuple(target[name].shape)
        own, moved = _at_same_scale(name, *depths)
        part: Part = "encoder" if name.startswith("encoder.") else "decoder"
        if HEADS in name:
            outcomes.append(
                TensorOutcome(name, "fresh", shape, "a segmentation head, which nnU-Net never loads", "head")
            )
        elif own not in given:
            outcomes.append(TensorOutcome(name, "fresh", shape, "the run's network has no such stage or block", part))
        elif own not in encoder and not source.trained_decoder:
            outcomes.append(TensorOutcome(name, "fresh", shape, "the run did not train its decoder", part))
        else:
            value, how = fit(given[own], shape, transposed=".transpconvs." in name)
            with torch.no_grad():
                target[name].copy_(value)
            how = "; ".join(h for h in (moved, how) if h)
            kind = "copied" if value is given[own] else "adapted"
            outcomes.append(TensorOutcome(name, kind, shape, how, part))  # type: ignore[arg-type]
    return outcomes


def fit(weight: Tensor, shape: Sequence[int], transposed: bool = False) -> tuple[Tensor, str]:
    """A convolution's weight (out, in, D, H, W) in another `shape`, and how; itself and "" when it has it already."""
    if tuple(weight.shape) == tuple(shape):
        return weight, ""
    how = []
    channels = shape[1]
    if weight.shape[1] != channels:
        assert weight.shape[1] == 1, "only one channel is repeated"
        weight = weight.repeat(1, channels, 1, 1, 1) / channels
        how.append(f"repeated over {channels} channels and divided by {channels}")
    for dim, axis in zip((2, 3, 4), "DHW"):
        have, want = weight.shape[dim], shape[dim]
        if have == want:
            continue
        if want == 1:
            weight = weight.mean(dim, keepdim=True)
            how.append(f"{have} became 1 along {axis}: the mean")
        elif transposed:
            weight = weight.repeat_interleave(want, dim)
            how.append(f"1 became {want} along {axis}: repeated")
        else:
            around = (want - have) // 2
            pad = [0, 0] * (4 - dim) + [around, around]
            weight = nn.functional.pad(weight, pad)
            how.append(f"{have} became {want} along {axis}: zeros around it")
    assert tuple(weight.shape) == tuple(shape), f"{tuple(weight.shape)} cannot become {tuple(shape)}"
    return weight, "; ".join(how)


def _at_same_scale(name: str, stages: int, own_stages: int) -> tuple[str, str]:
    """The run's name of a tensor at the same scale; nnU-Net counts decoder stages from the deep end."""
    match = re.match(r"decoder\.(stages|transpconvs)\.(\d+)\.", name)
    if match is None or stages == own_stages:
        return name, ""
    number = int(match[2]) + own_stages - stages
    own = f"decoder.{match[1]}.{number}.{name[match.end() :]}"
    return own, f"the run's {own}, of the same scale" if number >= 0 else ""


def _stages(names: Mapping[str, Tensor]) -> int:
    """How many stages an encoder has."""
    return 1 + max(int(match[1]) for name in names if (match := re.match(r"encoder\.stages\.(\d+)\.", name)))


def _plain(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Architecture kwargs with one entry a stage and an axis each, as nnU-Net's networks read shorter ones.

    Raises ValueError naming a key that is missing.
    """
    full = dict(kwargs)
    for key in ("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder"):
        if key not in full:
            raise ValueError(f"the architecture in the plans has no '{key}': is it one of nnU-Net's U-Nets?")
    n = full["n_stages"]
    for key, entries in {
        "features_per_stage": n,
        "n_conv_per_stage_decoder": n - 1,
        **dict.fromkeys(_BLOCKS, n),
    }.items():
        if isinstance(full.get(key), int):
            full[key] = [full[key]] * entries
    for key in ("kernel_sizes", "strides"):
        entries = [full[key]] * n if isinstance(full[key], int) else full[key]
        full[key] = [[e] * 3 if isinstance(e, int) else list(e) for e in entries]
    return full
