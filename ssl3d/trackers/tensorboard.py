"""TensorBoard: event files in RUN/tensorboard (`tensorboard --logdir RUN`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.image import imread

from ssl3d.trackers.tracker import numbers


class TensorBoard:
    """Scalars, pictures and warnings. A resumed run hides what an earlier start logged after its checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"
        self._writer: Any = None

    def _at(self, step: int) -> Any:
        """The writer, made when the first step is known: events of that step and later ones of before are purged."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.folder, purge_step=step)
        return self._writer

    def log(self, line: Mapping[str, Any]) -> None:
        writer = self._at(line["step"])
        for name, value in numbers(line).items():
            writer.add_scalar(name, value, line["step"])
        writer.flush()  # what was logged before a checkpoint must be there after a kill

    def picture(self, path: Path, step: int) -> None:
        self._at(step).add_image("preview", imread(path)[..., :3], step, dataformats="HWC")

    def warn(self, text: str, step: int) -> None:
        self._at(step).add_text("warning", text, step)

    def finish(self, failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()
