"""nnU-Net's and nnssl's convolutional U-Nets: ResidualEncoderUNet (OpenMind's ResEnc-L) and PlainConvUNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ssl3d.models.backbone import BackboneSpec
from ssl3d.weights.recognised import Hints, Recognised, State, UnusableWeightsError, count, same

_STEMS = {"ssl3d.models.resenc.ResEncUNet": "encoder.stem.convs.0.conv.weight",
          "ssl3d.models.plain_unet.PlainConvUNet": "encoder.stages.0.0.convs.0.conv.weight"}  # fmt: skip
_TWIN = "decoder.encoder."


def read(state: State, hints: Hints) -> Recognised | None:
    """Recognise by the stem's name. Strides come from the file's plans, else the decoder's kernels, else are assumed.

    Raises UnusableWeightsError: 2D weights, blocks or sizes that no backbone has, encoder and decoder.encoder differ.
    """
    named = dict(state)
    for name, value in state.items():  # a file that holds only the second of a tensor's two names
        named.setdefault(name.replace("all_modules.0.", "conv.").replace("all_modules.1.", "norm."), value)
    target = next((t for t, stem in _STEMS.items() if stem in named), None)
    if target is None:
        return None
    stem = named[_STEMS[target]]
    if stem.ndim != 5:
        raise UnusableWeightsError("holds a 2D nnU-Net (its 2d configuration): use that of 3d_fullres")
    _refuse_stale_twin(state)
    residual = target.endswith("ResEncUNet")
    if residual and "encoder.stages.0.blocks.0.conv3.conv.weight" in named:
        raise UnusableWeightsError("holds a ResidualEncoderUNet of bottleneck blocks, which ResEncUNet has not")
    architecture, how = _architecture(named, hints.content, residual)
    notes = [f"its architecture is {how}"] if how else []
    tensors = {n: v for n, v in state.items() if not n.startswith(_TWIN) and ".seg_layers." not in n}
    ignored = {n: "a segmentation head, which no backbone has" for n in state if ".seg_layers." in n}
    missing = {} if any(n.startswith("decoder.stages.") for n in state) else {"decoder.": "the file holds no decoder"}
    kwargs = {"size": "L", "in_channels": int(stem.shape[1]), "arch_kwargs": architecture}
    return Recognised(
        format=f"{program(hints.content)} {'ResidualEncoderUNet' if residual else 'PlainConvUNet'}",
        spec=BackboneSpec(target, kwargs),
        tensors=tensors,
        ignored=ignored,
        missing=missing,
        notes=notes,
        channels=int(stem.shape[1]),
    )


def program(content: Mapping[str, Any]) -> str:
    """Which of the two trained these weights."""
    return "nnssl" if "nnssl_adaptation_plan" in content else "nnU-Net"


def _refuse_stale_twin(state: State) -> None:
    """nnU-Net names the encoder twice and reads the second name last: what differs there is what it would train."""
    for name, value in state.items():
        twin = name.removeprefix(_TWIN)
        if twin != name and twin.startswith(("stem.", "stages.")):
            own = state.get(f"encoder.{twin}")
            if own is not None and not same(own, value):
                raise UnusableWeightsError(
                    f"holds two encoders: 'encoder.{twin}' and '{name}' are one tensor in nnU-Net but differ here, so "
                    "one of them is stale: export it again"
                )


def _architecture(state: State, content: Mapping[str, Any], residual: bool) -> tuple[dict[str, Any], str]:
    """arch_kwargs, and where its strides come from when they stand in no plans."""
    measured = _measured(state, residual)
    planned = plans_of(content)
    if planned is not None:
        for key in ("n_stages", "features_per_stage", "kernel_sizes"):
            if key in planned and _triples(planned[key]) != _triples(measured[key]):
                raise UnusableWeightsError(f"contradicts itself: its plans say {key} {planned[key]}, its tensors "
                                           f"{measured[key]}")  # fmt: skip
        kept = ("strides", "norm_op", "norm_op_kwargs", "nonlin", "nonlin_kwargs", "dropout_op", "dropout_op_kwargs")
        measured |= {key: planned[key] for key in kept if key in planned}
        return measured, ""
    strides = _decoder_strides(state, measured["n_stages"])
    if strides is not None:
        return measured | {"strides": strides}, ""
    assumed = f"assumed to halve the image at each of its {measured['n_stages'] - 1} steps: no plans and no decoder"
    return measured, f"{assumed} are in the file"


def _measured(state: State, residual: bool) -> dict[str, Any]:
    """What the encoder's and decoder's shapes say."""
    stages = count(state, r"encoder\.stages\.(\d+)\.")
    inner, blocks = (
        ("blocks.{}.conv1.conv", "n_blocks_per_stage") if residual else ("0.convs.{}.conv", "n_conv_per_stage")
    )
    names = [f"encoder.stages.{s}.{inner.format(0)}.weight" for s in range(stages)]
    if absent := [name for name in names if name not in state]:
        raise UnusableWeightsError(f"holds part of an encoder: '{absent[0]}' is missing")
    first = [state[name] for name in names]
    pattern = r"encoder\.stages\.{}\.blocks\.(\d+)\." if residual else r"encoder\.stages\.{}\.0\.convs\.(\d+)\."
    convs = [count(state, rf"decoder\.stages\.{s}\.convs\.(\d+)\.") for s in range(stages - 1)]
    found: dict[str, Any] = {
        "n_stages": stages,
        "features_per_stage": [int(w.shape[0]) for w in first],
        blocks: [count(state, pattern.format(s)) for s in range(stages)],
        "kernel_sizes": [[int(k) for k in w.shape[2:]] for w in first],
    }
    if all(convs):
        found["n_conv_per_stage_decoder"] = convs
    found["conv_bias"] = any(name.endswith(".conv.bias") for name in state)
    if any(name.endswith(".norm.running_mean") for name in state):
        found["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm3d"
    return found


def _decoder_strides(state: State, stages: int) -> list[list[int]] | None:
    """A transposed convolution's kernel is the stride it undoes, the deepest first."""
    kernels: list[Tensor | None] = [state.get(f"decoder.transpconvs.{i}.weight") for i in range(stages - 1)]
    found = [[int(k) for k in w.shape[2:]] for w in kernels[::-1] if w is not None]
    return [[1, 1, 1], *found] if len(found) == stages - 1 else None


def plans_of(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arch_kwargs that ssl3d's, nnssl's or nnU-Net's own checkpoint carries."""
    for block in (_at(content, "ssl3d", "architecture"), _at(content, "nnssl_adaptation_plan", "architecture_plans")):
        kwargs = _at(block, "arch_kwargs")
        if isinstance(kwargs, Mapping) and "strides" in kwargs:
            return dict(kwargs)
    arguments = _at(content, "init_args")
    configurations = _at(arguments, "plans", "configurations")
    name = _at(arguments, "configuration")
    while isinstance(configurations, Mapping) and isinstance(name, str):
        configuration = _at(configurations, name)
        kwargs = _at(configuration, "architecture", "arch_kwargs")
        if isinstance(kwargs, Mapping):
            return dict(kwargs)
        strides, kernels = _at(configuration, "pool_op_kernel_sizes"), _at(configuration, "conv_kernel_sizes")
        if isinstance(strides, Sequence) and isinstance(kernels, Sequence):  # plans before nnU-Net 2.5
            return {"strides": [list(s) for s in strides], "kernel_sizes": [list(k) for k in kernels]}
        name = _at(configuration, "inherits_from")
    return None


def _at(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _triples(value: Any) -> Any:
    """Kernel sizes as triples; anything else as it is."""
    if not isinstance(value, Sequence):
        return value
    if any(isinstance(v, Sequence) for v in value):
        return [[v] * 3 if isinstance(v, int) else list(v) for v in value]
    return [int(v) for v in value]
