"""Copy the next batch to a GPU while the present one is computed on: two buffers, on a stream of its own."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ssl3d.regions import RegionBatch


class Upload:
    """Brings batches to a device. This one leaves them where they are, on the CPU.

    `ahead`: batches that are on their way while one is computed on. `start` begins a copy, `finish` hands it over.
    """

    ahead = 0

    def start(self, batch: RegionBatch) -> RegionBatch:
        """The batch on the device, as soon as `finish` was called with it."""
        return batch

    def finish(self, batch: RegionBatch) -> RegionBatch:
        """The batch, for whatever is computed from here on."""
        return batch


class CudaUpload(Upload):
    """Copies on a stream of its own. Page-locked sources are reused by torch only after the copy's event."""

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, batch: RegionBatch) -> RegionBatch:
        with torch.cuda.stream(self._stream):
            return batch.to(self._device, non_blocking=True)

    def finish(self, batch: RegionBatch) -> RegionBatch:
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)  # of the GPU; this thread goes on
        for field in dataclasses.fields(batch):
            value = getattr(batch, field.name)
            if isinstance(value, Tensor) and value.is_cuda:
                value.record_stream(computing)  # or its memory could be given to the next copy too early
        return batch


def upload_to(device: torch.device) -> Upload:
    """What brings batches to `device`."""
    return CudaUpload(device) if device.type == "cuda" else Upload()
