"""Find the tensors in what a file holds: through the wrappers of a training program and the prefixes of its modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

# Where training programs keep the weights, the one to be exported first: an average or teacher before its student.
_WRAPPERS = (
    "network_weights", "teacher", "teacher_model", "model_ema", "ema", "state_dict", "model_state_dict", "model",
    "net", "network", "weights", "student",
)  # fmt: skip
_DEPTH = 4


def states(content: Any, where: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary of tensors in `content`, with the keys that lead to it, most likely first."""
    if isinstance(content, nn.Module):  # only after --trust
        content = content.state_dict()
    if not isinstance(content, Mapping):
        return
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if len(tensors) > 1:
        yield where, tensors
    if where.count("/") >= _DEPTH:
        return
    rest = [k for k in content if k not in _WRAPPERS]
    for key in [*(k for k in _WRAPPERS if k in content), *rest]:
        yield from states(content[key], f"{where}/{key}" if where else str(key))


def views(state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor], dict[str, str]]]:
    """A state as it is, then without the first part of its names wherever most of them share one (`module.`, ...).

    Each with the prefix taken off, and {name: why} for the names outside it.
    """
    prefix, current, outside = "", dict(state), dict[str, str]()
    for _ in range(_DEPTH + 1):
        yield prefix, current, dict(outside)
        firsts = Counter(name.split(".", 1)[0] for name in current if "." in name)
        if not firsts:
            return
        first, number = firsts.most_common(1)[0]
        if 2 * number < len(current):
            return
        for name in current:
            if not name.startswith(f"{first}."):
                outside[prefix + name] = f"outside '{prefix}{first}.'"
        prefix += f"{first}."
        current = {k.split(".", 1)[1]: v for k, v in current.items() if k.startswith(f"{first}.")}
