"""What a run tells: metrics.jsonl and previews. All but `time/*` is the same when a run is repeated."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssl3d.files import write_atomically, write_text

if TYPE_CHECKING:
    from ssl3d.fabric import Fabric

METRICS_FILE = "metrics.jsonl"
WARNING = "warning"  # the key of a line that holds a sentence


class MetricLog:
    """Means of logged scalars since the last line, and the lines themselves.

    Sums stay on the device in float64 (float32 where it has none), so that logging waits for nothing between lines.
    `volumes`: how many there are; `saw` marks those that were seen.
    """

    def __init__(self, path: Path, volumes: int = 0) -> None:
        self.path = path
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.volumes = torch.zeros(volumes, dtype=torch.uint8)

    def saw(self, volumes: Tensor) -> None:
        """Take the numbers of volumes that a batch is of."""
        self.volumes = self.volumes.to(volumes.device)  # a GPU's numbers are not waited for
        self.volumes[volumes] = 1

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Take the scalar entries of an objective's output (one micro-batch)."""
        for name, value in scalars.items():
            if value.numel() != 1:
                continue
            value = value.detach().reshape(())
            value = value.float() if value.device.type == "mps" else value.double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The means since the last call, which start anew."""
        values = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return values

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, or nothing of it. Raises OSError."""
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError:
            if self.path.exists():
                os.truncate(self.path, before)
            raise

    def state(self) -> dict[str, Any]:
        sums = {k: float(v) for k, v in self.sums.items()}
        return {"sums": sums, "counts": dict(self.counts), "volumes": self.volumes.cpu()}

    def share(self, fabric: Fabric) -> None:
        """Let all ranks have the means of their sums and all volumes that any of them saw. All must call it."""
        if fabric.world_size == 1:
            return
        if self.sums:
            sums = fabric.all_reduce(torch.stack(list(self.sums.values())), reduce_op="mean")
            assert isinstance(sums, Tensor)
            self.sums = dict(zip(self.sums, sums))
        if len(self.volumes):
            seen = fabric.all_reduce(self.volumes.clone(), reduce_op="max")
            assert isinstance(seen, Tensor)
            self.volumes = seen.to(self.volumes.device)

    def resume(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from the sums and volumes of a checkpoint."""
        self.sums = {k: torch.tensor(v, dtype=torch.float64, device=device) for k, v in state["sums"].items()}
        self.counts = dict(state["counts"])
        if len(state.get("volumes", ())) == len(self.volumes):  # runs of version 0.1.0 counted none
            self.volumes = state["volumes"].to(device)

    def cut(self, step: int) -> None:
        """Keep no line that is later than `step`."""
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def save_preview(folder: Path, step: int, outputs: Mapping[str, Tensor]) -> Path | None:
    """Save an objective's `preview/<name>` pictures (N,H,W) in [0,1]: a row a sample, a titled column a name.

    Returns the PNG, None when the objective draws nothing.
    """
    names = [name for name in outputs if name.startswith("preview/")]
    if not names:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [outputs[name].detach().float().cpu().numpy() for name in names]
    rows = min(4, *(len(c) for c in columns))
    figure = Figure(figsize=(2.2 * len(columns), 2.2 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_2d(figure.subplots(rows, len(columns), squeeze=False))
    for j, (name, pictures) in enumerate(zip(names, columns)):
        axes[0, j].set_title(name.removeprefix("preview/"), fontsize=9)
        for i in range(rows):
            axes[i, j].imshow(pictures[i], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes[i, j].set_axis_off()
    path = folder / f"step_{step:08d}.png"
    return write_atomically(path, lambda part: figure.savefig(part, dpi=110, format="png"))
