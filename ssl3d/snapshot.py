"""A copy of everything a run would save, taken between two steps, so that training goes on while it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Snapshot:
    """Copies trees of dicts, lists and tensors to the CPU, into the same memory each time.

    Fresh memory would cost more than the copy. Tensors that share memory go on sharing it. What `take` returned is
    overwritten by the next `take`.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The same tree with tensors of its own, after all that was queued on a GPU has arrived."""
        seen: dict[Any, Tensor] = {}
        copied = {key: self._copy(value, key, seen) for key, value in content.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    def _copy(self, value: Any, path: str, seen: dict[Any, Tensor]) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value.detach(), path, seen)
        if isinstance(value, Mapping):
            return {key: self._copy(entry, f"{path}/{key}", seen) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            copies = [self._copy(entry, f"{path}/{i}", seen) for i, entry in enumerate(value)]
            return tuple(copies) if isinstance(value, tuple) else copies
        return value

    def _tensor(self, value: Tensor, path: str, seen: dict[Any, Tensor]) -> Tensor:
        key = (value.data_ptr() if value.numel() else path, value.shape, value.stride(), value.dtype, value.device)
        if key in seen:
            return seen[key]
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[path] = buffer
        buffer.copy_(value, non_blocking=True)
        seen[key] = buffer
        return buffer
