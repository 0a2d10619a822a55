"""Primus and PrimusV2 as nnssl (OpenMind) and nnU-Net's Primus trainers save them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl3d.models.backbone import BackboneSpec
from ssl3d.models.primus import SIZES
from ssl3d.regions import Size3, size3
from ssl3d.weights.nnunet import program
from ssl3d.weights.recognised import Hints, Recognised, State, UnusableWeightsError, count, grid_of

_PATCHES = ("pretrain_patch_size", "recommended_downstream_patchsize")


def read(state: State, hints: Hints) -> Recognised | None:
    """Recognise by the names of its EVA blocks and patch embedding.

    Raises UnusableWeightsError: a width or depth that no size has, positions whose grid is unknown.
    """
    if "eva.blocks.0.attn.q_proj.weight" not in state or "eva.pos_embed" not in state:
        return None
    v2 = "down_projection.stem.blocks.0.conv1.conv.weight" in state
    stem = state.get("down_projection.stem.blocks.0.conv1.conv.weight" if v2 else "down_projection.proj.weight")
    if stem is None:
        raise UnusableWeightsError("holds the blocks of a Primus without its patch embedding 'down_projection'")
    made = (int(state["eva.pos_embed"].shape[2]), count(state, r"eva\.blocks\.(\d+)\."))
    size = next((name for name, (dim, depth, _) in SIZES.items() if (dim, depth) == made), None)
    if size is None:
        raise UnusableWeightsError(
            f"holds a Primus of {made[0]} features and {made[1]} blocks; known are "
            f"{', '.join(f'{dim}/{depth} ({name})' for name, (dim, depth, _) in SIZES.items())}"
        )
    patch: Size3 = (8, 8, 8) if v2 else size3(stem.shape[2:])
    grid = _grid(int(state["eva.pos_embed"].shape[1]), patch, hints)
    tensors = {n: v for n, v in state.items() if n.startswith(("down_projection.", "eva.", "up_projection."))}
    tensors = {n: v for n, v in tensors.items() if not n.startswith("eva.rope.")}
    ignored = {n: "a mask or register token, or a head" for n in state if n not in tensors}
    if not _has_our_outputs(tensors):
        decoder = [n for n in tensors if n.startswith("up_projection.")]
        ignored |= dict.fromkeys(decoder, "a decoder whose widths follow its own number of classes")
    channels = int(stem.shape[1])
    kwargs: dict[str, Any] = {"size": size, "in_channels": channels}
    kwargs |= {"input_size": [g * p for g, p in zip(grid, patch)]}
    kwargs |= {} if v2 else {"patch_size": list(patch)}
    found = Recognised(
        format=f"{program(hints.content)} {'PrimusV2' if v2 else 'Primus'} {size}",
        spec=BackboneSpec(f"ssl3d.models.primus.{'PrimusV2' if v2 else 'Primus'}", kwargs),
        tensors={n: v for n, v in tensors.items() if n not in ignored},
        ignored=ignored,
        missing={"up_projection.": "the file holds no decoder of these widths"},
        channels=channels,
        grid=grid,
    )
    if "nnssl_adaptation_plan" in hints.content and "ssl3d" not in hints.content:
        _swap_first_axes(found, SIZES[size][2], grid)
    return found


def _has_our_outputs(tensors: State) -> bool:
    """Whether the decoder ends in the 16 features that ours ends in; all its widths follow from that number."""
    stages = count(tensors, r"up_projection\.decode\.(\d+)\.")
    last = tensors.get(f"up_projection.decode.{stages - 1}.weight")
    return last is not None and last.shape[1] == 16


def _grid(tokens: int, patch: Size3, hints: Hints) -> Size3:
    """Tokens (D, H, W) of the position table: from the plan in the file, else the model's, else a cube's."""
    sizes = [
        where.get(key)
        for where in (hints.content.get("nnssl_adaptation_plan"), hints.content.get("ssl3d"))
        for key in _PATCHES
        if isinstance(where, Mapping)
    ]
    grid = grid_of(tokens, patch, [*sizes, hints.input_size])
    if grid is None:
        raise UnusableWeightsError(
            f"holds positions of {tokens} tokens, which is no cube, and no plan that says of which patch size: name it "
            "as model.input_size in a recipe with model.init"
        )
    return grid


def _swap_first_axes(found: Recognised, heads: int, grid: Size3) -> None:
    """nnssl flattens a (B,C,W,H,D) tensor as (h w d), nnU-Net and this library as (w h d).

    So positions, learned and rotary, stood at the token with the first two axes swapped. The table is transposed, and
    the third of each query's and key's features that a rotary axis turns changes places with that of the other axis:
    the same features as in nnssl, for tokens in our order.
    """
    d, h, w = grid
    if d != h:
        raise UnusableWeightsError(
            f"was trained by nnssl on {list(grid)} tokens, whose first two axes differ: its token order cannot be "
            "brought into ours"
        )
    table = found.tensors["eva.pos_embed"]
    found.tensors["eva.pos_embed"] = table.reshape(1, h, d, w, -1).transpose(1, 2).reshape(table.shape).contiguous()
    found.adapted["eva.pos_embed"] = "first two axes of the token grid swapped: nnssl flattens (h w d), this (w h d)"
    for name, value in found.tensors.items():
        if ".attn.q_proj." in name or ".attn.k_proj." in name:
            found.tensors[name] = _swap_thirds(value, heads)
            found.adapted[name] = "features turned by the first two rotary axes swapped, for nnssl's token order"


def _swap_thirds(value: Tensor, heads: int) -> Tensor:
    """(C, ...) with the first two thirds of each head's features swapped."""
    return value.unflatten(0, (heads, 3, -1))[:, [1, 0, 2]].flatten(0, 2)
