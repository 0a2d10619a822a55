"""The weights that a training starts from or learns from: read once, recorded in the run, never read by a resume.

`model.init` starts the backbone; a task may name more (the teacher of Distillation).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ssl3d import checkpoint
from ssl3d.config import ConfigError
from ssl3d.files import write_json
from ssl3d.leaks import find_seen
from ssl3d.models.backbone import Backbone
from ssl3d.tasks.task import Objective

RECORD_FILE, SEEN_FILE = "initial_weights.json", "initial_seen.parquet"
KNOWN, UNKNOWN = "known", "unknown"


@dataclass(frozen=True)
class Initial:
    """What a run started from: `record` (plain types, for RECORD_FILE) and `seen`, the rows of its seen.parquet.

    `record["data"]` is UNKNOWN where those weights, or the ones they came from, were trained on volumes that no
    seen.parquet lists. `record["teachers"]`: such records of trained networks that the task was given, by their keys.
    """

    record: dict[str, Any]
    seen: pd.DataFrame | None = None

    def unknown(self) -> list[str]:
        """The weights whose data are unknown, each as "PATH (format)"."""
        every = [self.record, *self.record.get("teachers", {}).values()]
        return [f"{one['init']} ({one['format']})" for one in every if one.get("data") == UNKNOWN]

    def write(self, folder: Path) -> None:
        """Keep it in the run's folder, for resumes and for the leak guard."""
        write_json(folder / RECORD_FILE, self.record)
        if self.seen is not None:
            self.seen.to_parquet(folder / SEEN_FILE, index=False)


def initialise(backbone: Backbone, model: Mapping[str, Any]) -> Initial | None:
    """Fill `backbone` as the model section of a recipe says (init, init_part, ...); None when it names no weights.

    Raises FileNotFoundError, ValueError: one sentence that begins with model.init.
    """
    if model["init"] is None:
        return None
    return _fill(backbone, model["init"], "model.init", model)


def fill_trained(objective: Objective, model: Mapping[str, Any], initial: Initial | None) -> Initial | None:
    """Fill the trained networks that a task was given, and add them to what the run starts from.

    Raises ConfigError, FileNotFoundError, ValueError naming the key of the one that cannot be filled.
    """
    found = dict[str, Initial]()
    for name, trained in objective.trained_networks().items():
        key = f"task.{name}"
        if trained.init is None:
            missing = f"{key}.init is not set: name the run or weights file whose network is to be learnt from"
            raise ConfigError([missing])
        whole = {**model, "init_part": "all", "init_minimum": 1.0}
        found[key] = _fill(trained.network, trained.init, f"{key}.init", whole, trained.decoder)
    if not found:
        return initial
    record = {} if initial is None else initial.record
    seen = [one.seen for one in (initial, *found.values()) if one is not None and one.seen is not None]
    record = record | {"teachers": {key: one.record for key, one in found.items()}}
    return Initial(record, pd.concat(seen, ignore_index=True) if seen else None)


def _fill(network: Backbone, init: str, key: str, model: Mapping[str, Any], decoder: bool = False) -> Initial:
    """Fill a network from the run or file `init`, which the recipe's `key` names; `decoder`: it must be trained too."""
    from ssl3d import weights  # the networks that other programs know take seconds to import

    path = Path(init)
    choices = weights.Choices(
        trust=model["init_trust"],
        cast=model["init_cast"],
        inflate=model["init_inflate"],
        minimum=model["init_minimum"],
    )
    try:
        report = weights.fill_from(network, path, model["init_part"], choices, source=f"{key}: '{path}'")
    except (ValueError, FileNotFoundError) as error:
        message = str(error).replace("--minimum ", "model.init_minimum=")
        raise type(error)(message if message.startswith(f"{key}: ") else f"{key}: {message}") from None
    if decoder and (report.share("decoder") < 1 or not report.provenance.get("trained_decoder", True)):
        raise ValueError(f"{key}: '{path}' holds no trained decoder: compare encoders alone, with decoder=false")
    seen = find_seen(path)
    before = load(seen.parent) if seen is not None else None
    unknown = seen is None or (before is not None and bool(before.unknown()))
    record = {
        "init": str(path),
        "digest": report.digest,
        "format": report.format,
        "backbone": report.backbone,
        "part": model["init_part"],
        "summary": f"{report.summary()}; {report.shares()}",
        "notes": report.notes,
        "data": UNKNOWN if unknown else KNOWN,
        "seen_digest": report.provenance.get("seen_digest"),
    }
    return Initial(record, None if seen is None else pd.read_parquet(seen))


def load(folder: Path) -> Initial | None:
    """What a run's folder says it started from; None when it started from random weights."""
    if not (folder / RECORD_FILE).is_file():
        return None
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    seen = folder / SEEN_FILE
    return Initial(record, pd.read_parquet(seen) if seen.is_file() else None)


def provenance(run_or_file: Path) -> dict[str, Any]:
    """{recipe, seed, steps} of a run or checkpoint; {imported: format, digest, notes} of other weights.

    Of both, `seen_digest` where they carry it: of the list of volumes that they were trained on (ssl3d.leaks).

    Raises FileNotFoundError, ValueError naming the file.
    """
    if not checkpoint.is_foreign(run_or_file):
        content = checkpoint.open_run(run_or_file)
        recipe = content["recipe"]
        own = {"recipe": recipe, "seed": recipe["run"]["seed"], "steps": content["step"]}
        return own | _seen(content)
    from ssl3d import weights

    _, report = weights.import_weights(run_or_file)
    found = {"imported": {"format": report.format, "digest": report.digest, "notes": report.notes}}
    return found | _seen(report.provenance)


def _seen(card: Mapping[str, Any]) -> dict[str, Any]:
    digest = card.get("seen_digest")
    return {"seen_digest": digest} if digest else {}
