"""Plain vision transformers: timm's and DINOv2's in 2D, which are inflated, and their 3D heirs (3DINO, TAP-CT)."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from ssl3d.models.backbone import BackboneSpec
from ssl3d.regions import Size3, size3
from ssl3d.weights.inflate import WORDS, inflate
from ssl3d.weights.recognised import Hints, Recognised, State, UnusableWeightsError, count, grid_of

# Attention heads by features, where they are not 64 features each; they leave no trace in the weights.
_HEADS = {1280: 16, 1408: 16}
_DEEPEST_TABLE = 16  # tokens along the depth of an inflated position table, at most
_OURS = ("patch_embed.proj.", "blocks.", "norm.", "cls_token", "reg_token", "pos_embed")
# The names of Hugging Face's Dinov2Model and timm's.
_HUB = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
_DINO = (
    (r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),  # chunks of blocks, as sharded training makes them
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^register_tokens$", "reg_token"),
)


def read(state: State, hints: Hints) -> Recognised | None:
    """Recognise by the names of patch embedding and blocks, timm's, DINOv2's or Hugging Face's.

    Raises UnusableWeightsError: rotary or unknown positions, norms that DinoViT has not.
    """
    named = _timm_names(state)
    if "patch_embed.proj.weight" not in named or "blocks.0.attn.qkv.weight" not in named:
        return None
    _refuse_other_blocks(named)
    proj = named["patch_embed.proj.weight"]
    dim, flat = int(proj.shape[0]), proj.ndim == 4
    found = Recognised(
        format=f"vision transformer ({'timm, DINOv2: 2D' if flat else 'DINOv2 in 3D: 3DINO, TAP-CT'})",
        spec=BackboneSpec("ssl3d.models.dino_vit.DinoViT", {}),
        tensors={f"vit.{n}": v for n, v in named.items() if n.startswith(_OURS)},
        ignored={n: "a head, or a token of its pre-training" for n in named if not n.startswith(_OURS)},
        missing={"decoder.": "the published network has no decoder"},
        channels=int(proj.shape[1]),
    )
    patch = size3([proj.shape[2] if flat else 0, *proj.shape[2:]][-3:])
    found.tensors["vit.pos_embed"], found.grid = _positions(found, patch, flat, hints)
    if flat:
        _inflate(found, patch, hints)
    _add_missing_biases(found)
    fc1 = named["blocks.0.mlp.fc1.weight"]
    registers = int(named["reg_token"].shape[1]) if "reg_token" in named else 0
    heads = _HEADS.get(dim, max(1, dim // 64))
    found.notes.append(f"{heads} attention heads are assumed: their number is not in the file")
    found.spec.kwargs.update({
        "embed_dim": dim, "depth": count(named, r"blocks\.(\d+)\."), "heads": heads,
        "in_channels": 1 if flat else int(proj.shape[1]), "patch_size": list(patch),
        "input_size": [g * p for g, p in zip(found.grid, patch)], "class_token": "cls_token" in named,
        "registers": registers, "layer_scale": "blocks.0.ls1.gamma" in named,
        "feed_forward": "swiglu" if 2 * named["blocks.0.mlp.fc2.weight"].shape[1] == fc1.shape[0] else "mlp",
        "mlp_features": int(fc1.shape[0]),
    })  # fmt: skip
    return found


def _timm_names(state: State) -> dict[str, Tensor]:
    renamed = {}
    rules = (*_HUB, *_DINO) if "embeddings.cls_token" in state else _DINO
    for name, value in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        renamed[name] = value
    for name in [n for n in renamed if ".attention.attention.query." in n]:  # Hugging Face keeps q, k, v apart
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    return renamed


def _refuse_other_blocks(named: State) -> None:
    for name, what in (
        ("norm_pre.weight", "a norm before its blocks (CLIP)"),
        ("blocks.0.attn.q_norm.weight", "norms of queries and keys"),
        ("blocks.0.gamma_1", "BEiT's layer scale"),
        ("rope.periods", "rotary positions (SPECTRE, DINOv3)"),
        ("rope_embed.periods", "rotary positions (SPECTRE, DINOv3)"),
    ):
        if name in named:
            raise UnusableWeightsError(f"holds a vision transformer with {what}, which DinoViT has not")
    if "pos_embed" not in named:
        raise UnusableWeightsError("holds a vision transformer without learned positions, which DinoViT needs")
    if "norm.weight" not in named:
        raise UnusableWeightsError("holds a vision transformer without a last norm ('norm'), which DinoViT has")


def _positions(found: Recognised, patch: Size3, flat: bool, hints: Hints) -> tuple[Tensor, Size3]:
    """The patches' positions and their grid; those of class and register tokens are added to the tokens."""
    table = found.tensors["vit.pos_embed"]
    prefix = [n for n in ("vit.cls_token", "vit.reg_token") if n in found.tensors]
    sizes = [found.tensors[n].shape[1] for n in prefix]
    for used in sorted({0, sum(sizes[:1]), sum(sizes)}, key=lambda n: n != sum(sizes[:1])):
        count_ = int(table.shape[1]) - used
        grid = _flat_grid(count_) if flat else grid_of(count_, patch, [hints.input_size])
        if grid is not None:
            break
    else:
        raise UnusableWeightsError(
            f"holds positions of {table.shape[1]} tokens, of which no {'square' if flat else 'cube'} is left: name the "
            "size of its input as model.input_size in a recipe with model.init"
        )
    start = 0
    for name, size in zip(prefix, sizes):
        if start + size <= used:
            found.tensors[name] = found.tensors[name] + table[:, start : start + size]
            found.adapted[name] = "its own position added"
        start += size
    return table[:, used:], grid


def _flat_grid(tokens: int) -> Size3 | None:
    side = math.isqrt(tokens)
    return (1, side, side) if side > 0 and side * side == tokens else None


def _inflate(found: Recognised, patch: Size3, hints: Hints) -> None:
    """A depth for the patch embedding (as deep as high) and for the position table (each slice has the same)."""
    _, h, w = found.grid or (1, 1, 1)
    deep = min(h, _DEEPEST_TABLE)
    table = found.tensors["vit.pos_embed"]
    found.grid = (deep, h, w)
    found.tensors["vit.pos_embed"] = table.repeat(1, deep, 1)
    found.adapted["vit.pos_embed"] = f"the slice's positions at each of {deep} depths"
    name = "vit.patch_embed.proj.weight"
    found.tensors[name] = inflate(found.tensors[name], patch[0], hints.inflate)
    found.adapted[name] = f"inflated ({hints.inflate})"
    found.notes.append(f"2D kernels became 3D ({hints.inflate}): {WORDS[hints.inflate]}")
    found.notes.append("trained on photographs normalised by ImageNet's mean and deviation, which is not undone")


def _add_missing_biases(found: Recognised) -> None:
    for name in [n for n in found.tensors if n.endswith("attn.qkv.weight")]:
        bias = name.replace("weight", "bias")
        if bias not in found.tensors:
            found.tensors[bias] = found.tensors[name].new_zeros(len(found.tensors[name]))
            found.adapted[bias] = "zero: the published network has none"
