"""Checkpoints of a run: written whole or not at all, plain types and tensors only, and what is loaded from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl3d import checkpoint_file, config
from ssl3d.models.backbone import Backbone, BackboneSpec, build_backbone
from ssl3d.tasks.task import Objective
from ssl3d.terminal import say

FORMAT = 1
FOLDER, LAST, PREVIOUS, NEW, BEST = "checkpoints", "last.pt", "previous.pt", "new.pt", "best.pt"


def save(run: Path, content: Mapping[str, Any], best: bool = False) -> Path:
    """Write `content` as the run's last checkpoint; the one before is kept. A kill at any moment leaves one whole.

    `best`: as its best one instead, which no resume starts from.

    Raises OSError when the disk is full; the checkpoints already there are untouched.
    """
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if best:
        checkpoint_file.write(folder / BEST, {"format": FORMAT, **content})
        return folder / BEST
    new = folder / NEW
    checkpoint_file.write(new, {"format": FORMAT, **content})
    if (folder / LAST).exists():
        (folder / LAST).replace(folder / PREVIOUS)
    new.replace(folder / LAST)
    return folder / LAST


def exists(run: Path) -> bool:
    """Whether a run has a checkpoint, whole or damaged: the same directory again is a resume."""
    return any((run / FOLDER / name).exists() for name in (LAST, NEW, PREVIOUS))


def latest(run: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The newest whole checkpoint of a run and, if the last one was damaged or missing, a sentence that says so.

    Raises ValueError when checkpoints exist but none can be read.
    """
    folder = run / FOLDER
    damaged = []
    for name in (LAST, NEW, PREVIOUS):  # NEW: killed between its last byte and its place
        path = folder / name
        if not path.exists():
            continue
        try:
            content = read(path)
        except ValueError as error:
            damaged.append(str(error))
            continue
        note = f"{damaged[0]}; going on from {name} at step {content['step']}" if damaged else None
        return content, note
    if damaged:
        others = "holds no other checkpoint" if len(damaged) == 1 else "holds no whole one"
        raise ValueError(f"{damaged[0]}, and {run} {others}: copy the run again, or train anew in another run.dir")
    return None, None


def read(path: Path) -> dict[str, Any]:
    """A checkpoint file as plain types and CPU tensors. Raises ValueError with one sentence naming the file."""
    content = checkpoint_file.read(path)
    if content.get("format") != FORMAT or "backbone_spec" not in content:
        raise ValueError(f"{path} is not a checkpoint of ssl3d (format {FORMAT})")
    return content


def open_run(run_or_file: str | Path) -> dict[str, Any]:
    """The checkpoint of a run directory ('last') or of a file. Raises FileNotFoundError or ValueError naming it.

    When the last one is damaged and an older one is taken, that is said.
    """
    path = Path(run_or_file)
    if path.is_dir():
        content, note = latest(path)
        if note:
            say(note, error=True)
        if content is None:
            raise FileNotFoundError(f"{run_or_file} holds no checkpoint: is it a run directory that has been trained?")
        return content
    if not path.exists():
        raise FileNotFoundError(f"there is no run or weights file '{run_or_file}': give a run.dir of yours, or a file")
    return read(path)


def exported_prefix(objective: Objective) -> str:
    """Where in the objective's state the exported backbone lies ("backbone.", "teacher.", ...)."""
    return prefix_of(objective, objective.exported)


def prefix_of(objective: Objective, backbone: Backbone) -> str:
    """Where in the objective's state a backbone lies. Raises ValueError when it is none of the objective's modules."""
    names = [name for name, module in objective.named_modules() if module is backbone]
    if not names:
        raise ValueError(f"{type(objective).__name__}.backbone is not one of its modules: it would not be saved")
    return f"{names[0]}." if names[0] else ""


def spec_to_dict(spec: BackboneSpec) -> dict[str, Any]:
    return config.schema.plain(dataclasses.asdict(spec))


def backbone_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The exported weights of a checkpoint: the moving average where the run keeps one."""
    state = content["average"] or content["model"]
    prefix = content["exported"]
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def is_foreign(run_or_file: str | Path) -> bool:
    """Whether this is a weights file (or a folder with one) that no run of ours wrote as a checkpoint."""
    path = Path(run_or_file)
    if path.is_dir():
        return not (path / FOLDER).is_dir() and any((path / name).is_file() for name in checkpoint_file.PUBLISHED)
    return path.is_file() and not checkpoint_file.is_signed(path)


def load_backbone(run_or_file: str | Path) -> Backbone:
    """The trained backbone of a run, checkpoint or weights file of another program, on the CPU, in eval mode.

    Raises FileNotFoundError, ValueError naming the file.
    """
    if is_foreign(run_or_file):
        from ssl3d.weights import import_weights  # the networks that other programs know take seconds to import

        return import_weights(run_or_file)[0]
    content = open_run(run_or_file)
    backbone = build_backbone(BackboneSpec(**content["backbone_spec"]))
    backbone.load_state_dict(backbone_state(content))
    return backbone.eval()


def load_objective(run_or_file: str | Path) -> Objective:
    """The whole trained objective (heads included), on the CPU, in eval mode. Raises as `load_backbone`."""
    content = open_run(run_or_file)
    recipe = config.load(content["recipe"])
    objective = config.build_task(recipe, config.build_model(recipe))
    objective.load_state_dict(content["average"] or content["model"])
    return objective.eval()


def trained_decoder(objective: Objective) -> bool:
    """Whether the objective trains the backbone's decoder (an export reports it 'fresh' otherwise)."""
    return objective.needs_decoder and bool(objective.backbone.decoder_channels)
