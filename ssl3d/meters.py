"""What a step costs this machine: seconds, waiting, memory, and how much of the processor's peak it uses."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator

import torch

from ssl3d import gpus
from ssl3d.check import step_flops
from ssl3d.config import Recipe
from ssl3d.fabric import Fabric
from ssl3d.regions import RegionBatch
from ssl3d.tasks.task import Objective

GIB = 2**30


class Watch:
    """Since the last line: seconds of a step, its share spent waiting for data, peak memory, utilisation.

    `peak`: floating point operations a second that the device can do, `flops`: those of a step that this device does;
    None where either is unknown.
    """

    def __init__(self, device: torch.device, flops: float | None = None, peak: float | None = None) -> None:
        self.device, self.flops, self.peak = device, flops, peak
        self.steps, self.total, self.waited, self.began = 0, 0.0, 0.0, 0.0

    def start(self) -> None:
        self.began = time.perf_counter()

    def wait(self, batches: Iterator[RegionBatch]) -> RegionBatch:
        began = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - began
        return batch

    def stop(self) -> None:
        self.total += time.perf_counter() - self.began
        self.steps += 1

    def read(self) -> dict[str, float]:
        """`time/step`, `time/data_share`, `time/peak_gib`, and `time/mfu` where it is known."""
        step = self.total / max(1, self.steps)
        line = {"time/step": step, "time/data_share": self.waited / max(self.total, 1e-12)}
        line["time/peak_gib"] = peak_bytes(self.device) / GIB
        if self.flops is not None and self.peak is not None and step > 0:
            line["time/mfu"] = self.flops / (step * self.peak)
        self.steps, self.total, self.waited = 0, 0.0, 0.0
        return line


def watch(recipe: Recipe, objective: Objective, fabric: Fabric) -> Watch:
    """The watch of a run.

    Utilisation is the backbone's counted operations a second, of the data sheet's peak (model FLOPs utilisation:
    Chowdhery et al., PaLM, arXiv 2204.02311, appendix B): what is computed again counts once. It is unknown on a CPU,
    on a GPU that ssl3d.gpus does not list, in arithmetic that its figure is not for, and where the mask decides how
    much is computed.
    """
    gpu = None
    if fabric.device.type == "cuda" and fabric.strategy.precision.precision in ("bf16-mixed", "16-mixed"):
        gpu = gpus.find(torch.cuda.get_device_name(fabric.device))
    if gpu is None or objective.reads_weights:
        return Watch(fabric.device)
    return Watch(fabric.device, step_flops(recipe, objective) / fabric.world_size, gpu.tflops * 1e12)


def peak_bytes(device: torch.device) -> int:
    """The most that tensors held on a GPU since the last call; the most this process ever held, on a CPU."""
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return held
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
