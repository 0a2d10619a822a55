"""Suite, recipes, environment and the command that repeats an evaluation, collapsed."""

from __future__ import annotations

import json
import shlex
from typing import Any

import yaml

from downstream import page
from downstream.blocks import Block, Html, Section
from downstream.sections.view import View


def provenance(view: View) -> Section | None:
    """None where the directory says nothing of it."""
    evaluation = view.evaluation
    blocks: list[Block] = []
    runs = [str(arm["run"]) for arm in evaluation.arms.values() if arm.get("run")]
    if runs:
        suite = evaluation.directory / "suite.yaml"
        again = f"ssl3d evaluate {shlex.join(runs)} --suite {shlex.quote(str(suite))} --out NEW"
        blocks.append(Html(f"<p>Repeat it: <code>{page.text(again)}</code></p>"))
    if evaluation.suite:
        blocks.append(page.details("Suite", _yaml(evaluation.suite)))
    recipes: list[Block] = []
    for name, arm in evaluation.arms.items():
        about = {key: value for key, value in arm.items() if key != "recipe" and value not in (None, {}, "")}
        blocks.append(page.details(f"Arm {name}", _yaml(about)))
        if arm.get("recipe"):
            recipes.append(page.details(f"Pre-training recipe of {name}", _yaml(arm["recipe"])))
    blocks += recipes
    if evaluation.environment:
        blocks.append(page.details("Environment", json.dumps(evaluation.environment, indent=2)))
    return Section("Recipe and environment", blocks) if blocks else None


def _yaml(values: Any) -> str:
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110))
