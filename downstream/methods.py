"""Which arms are pre-training runs of one method: equal recipes but for the seed and what decides no weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# (section, key) of a pre-training recipe that may differ between runs of one method; None is the whole section
FREE = (
    ("run", "seed"),
    ("run", "dir"),
    ("run", "trackers"),
    ("run", "log_every"),
    ("run", "checkpoint_every"),
    ("run", "preview_every"),
    ("run", "holdout_every"),
    ("run", "collapse_every"),
    ("data", "workers"),
    ("data", "cache_gb"),
    ("wandb", None),
    ("probe", None),
)


def method_of(provenance: Mapping[str, Any], digest: str = "") -> str:
    """The method column of results.csv: "MAE-3f2a1b", the same for runs whose recipes differ in FREE alone.

    `provenance`: Arm.provenance ({recipe, seed, steps}). Runs that stopped at different steps are different methods.
    Weights without a recipe are a method by themselves, named by `digest` (of the arm's weights); without either,
    "", which is nobody's method.
    """
    recipe = provenance.get("recipe")
    if not isinstance(recipe, Mapping):
        return f"weights-{digest[:6]}" if digest else ""
    content = {section: bound(section, values) for section, values in recipe.items()}
    content = {section: values for section, values in content.items() if values is not None}
    text = json.dumps([content, provenance.get("steps")], sort_keys=True, default=str)
    short = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()[:6]
    return f"{_name(recipe)}-{short}"


def bound(section: str, values: Any) -> Any:
    """A section of a recipe without the keys that are free, None when the whole section is.

    A list of one store is that store.
    """
    if (section, None) in FREE:
        return None
    if not isinstance(values, Mapping):
        return values
    kept = {key: value for key, value in values.items() if (section, key) not in FREE}
    if section == "data" and isinstance(store := kept.get("store"), list) and len(store) == 1:
        kept["store"] = store[0]
    return kept


def _name(recipe: Mapping[str, Any]) -> str:
    """The class of the pretext task, as the paper calls the method."""
    task = recipe.get("task")
    target = task.get("_target_") if isinstance(task, Mapping) else None
    return str(target).rsplit(".", 1)[-1] if target else "method"
