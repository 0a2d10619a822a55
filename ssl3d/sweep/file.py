"""A sweep file as wandb defines it: what is searched, how, and by which command. Read and checked here for local runs.

https://docs.wandb.ai/guides/sweeps/sweep-config-keys
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ssl3d import config
from ssl3d.schema import ConfigError, did_you_mean

SWEEPS = config.RECIPES / "sweeps"
METHODS = ("grid", "random", "bayes")
_KEYS = ("program", "method", "metric", "parameters", "command", "early_terminate", "name", "description", "project",
         "entity", "run_cap")  # fmt: skip
_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Za-z0-9_]+)\}")
_COMMAND = ["${env}", "ssl3d", "train"]


@dataclass
class Sweep:
    """A checked sweep. `space`: what is searched; `fixed`: parameters with one value."""

    method: str
    metric: str
    maximise: bool
    space: dict[str, BaseDistribution]
    fixed: dict[str, Any]
    recipe: str
    overrides: list[str]
    min_iter: int | None  # of hyperband: lines of the metric before the first decision; None without early_terminate
    eta: int = 3

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the values."""
        choices = [d.choices for d in self.space.values() if isinstance(d, CategoricalDistribution)]
        return [dict(zip(self.space, values)) for values in itertools.product(*choices)]


def read(name: str) -> Sweep:
    """A sweep by path, or by name below recipes/sweeps.

    Raises FileNotFoundError, and ConfigError with all faults, a sentence each.
    """
    values = _yaml(config.find(name, SWEEPS, kind="sweep"), name)
    faults = [f"unknown key '{k}'{did_you_mean(str(k), _KEYS)}" for k in values if k not in _KEYS]
    method = values.get("method")
    if method not in METHODS:
        faults.append(f"method is {method!r}; it must be {', '.join(METHODS[:-1])} or {METHODS[-1]}")
    metric = values.get("metric") or {}
    if not isinstance(metric, Mapping) or not isinstance(metric.get("name"), str):
        faults.append("metric.name is missing: probe/score, holdout/loss or another name of metrics.jsonl")
        metric = {}
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        faults.append(f"metric.goal is {metric['goal']!r}; it must be minimize or maximize")
    space, fixed = _parameters(values.get("parameters"), method, faults)
    recipe, overrides = _command(values.get("command"), faults)
    min_iter, eta = _early_terminate(values.get("early_terminate"), faults)
    if faults:
        raise ConfigError([f"{name}: {fault}" for fault in faults])
    goal = metric.get("goal", "minimize")
    return Sweep(str(method), metric["name"], goal == "maximize", space, fixed, recipe, overrides, min_iter, eta)


def _yaml(path: Path, name: str) -> dict[str, Any]:
    """As wandb reads it: its ${...} are no interpolations of ours."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{name}: not readable as YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(values, dict):
        raise ConfigError([f"{name} must be a mapping, as wandb's sweep files are"])
    return values


def _parameters(node: Any, method: Any, faults: list[str]) -> tuple[dict[str, BaseDistribution], dict[str, Any]]:
    space: dict[str, BaseDistribution] = {}
    fixed: dict[str, Any] = {}
    if not isinstance(node, Mapping) or not node:
        faults.append("parameters is missing: what is to be searched")
        return space, fixed
    for name, spec in node.items():
        try:
            if not isinstance(spec, Mapping):
                raise ValueError("must be a mapping with value, values, or min and max")
            if "value" in spec:
                fixed[name] = spec["value"]
                continue
            space[name] = _distribution(spec)
            if method == "grid" and not isinstance(space[name], CategoricalDistribution):
                raise ValueError("needs values: a grid has no end otherwise")
        except ValueError as error:
            faults.append(f"parameters.{name} {error}")
    return space, fixed


def _distribution(spec: Mapping[str, Any]) -> BaseDistribution:
    if "values" in spec:
        values = spec["values"]
        if not isinstance(values, list) or not values:
            raise ValueError("values must be a list that is not empty")
        # optuna keeps choices as plain numbers and texts; a list among them is written as it would be typed
        plain = (str, int, float, bool, type(None))
        return CategoricalDistribution([v if isinstance(v, plain) else str(v).replace(" ", "") for v in values])
    low, high = spec.get("min"), spec.get("max")
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (low, high)):
        raise ValueError("needs value, values, or the numbers min and max")
    assert isinstance(low, (int, float)) and isinstance(high, (int, float))
    kind = spec.get("distribution", "int_uniform" if isinstance(low, int) and isinstance(high, int) else "uniform")
    if kind == "int_uniform":
        return IntDistribution(int(low), int(high))
    if kind == "uniform":
        return FloatDistribution(low, high)
    if kind == "log_uniform_values":
        return FloatDistribution(low, high, log=True)
    if kind == "q_uniform":
        return FloatDistribution(low, high, step=spec.get("q", 1))
    raise ValueError(f"distribution is '{kind}'; known are uniform, int_uniform, q_uniform and log_uniform_values")


def _command(node: Any, faults: list[str]) -> tuple[str, list[str]]:
    """(recipe, overrides) of `[${env}, ssl3d, train, RECIPE, key=value..., ${args_no_hyphens}]`."""
    words = [str(word) for word in node] if isinstance(node, list) else []
    if words[:3] != _COMMAND or len(words) < 5 or words[-1] != "${args_no_hyphens}":
        faults.append("command must be [${env}, ssl3d, train, RECIPE, ${args_no_hyphens}], overrides before the last")
        return "", []
    unset = sorted({v for word in words for v in _ENVIRONMENT.findall(word) if v not in os.environ})
    faults += [f"command needs the environment variable {v}: export {v}=..., e.g. a store's path" for v in unset]
    return words[3], [_ENVIRONMENT.sub(lambda found: os.environ.get(found[1], ""), word) for word in words[4:-1]]


def _early_terminate(node: Any, faults: list[str]) -> tuple[int | None, int]:
    if node is None:
        return None, 3
    if not isinstance(node, Mapping) or node.get("type") != "hyperband" or not isinstance(node.get("min_iter"), int):
        faults.append("early_terminate must be {type: hyperband, min_iter: N, eta: N}")
        return None, 3
    return node["min_iter"], int(node.get("eta", 3))


def sampler(sweep: Sweep, seed: int) -> optuna.samplers.BaseSampler:
    """random; bayes: tree-structured Parzen estimators in place of wandb's Gaussian process (a grid is enqueued)."""
    if sweep.method == "bayes":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    """Hyperband where the file asks for it."""
    if sweep.min_iter is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.HyperbandPruner(min_resource=sweep.min_iter, reduction_factor=sweep.eta)


def check_recipe(sweep: Sweep) -> None:
    """Every searched key is one that the recipe has, with one of its values. Raises ConfigError."""
    first = {name: example(distribution) for name, distribution in sweep.space.items()}
    overrides = [*sweep.overrides, *(f"{k}={v}" for k, v in {**sweep.fixed, **first}.items())]
    config.load(sweep.recipe, overrides, unset=("data.store",))


def example(distribution: BaseDistribution) -> Any:
    """A value in the middle of what the distribution may give."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    middle = (distribution.low + distribution.high) / 2
    return int(middle) if isinstance(distribution, IntDistribution) else middle

