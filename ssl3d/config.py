"""Recipes: one page of YAML, typed and complete. Load, override, check every key at every depth, build."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ssl3d import schema
from ssl3d.recipe import (
    DataConfig,
    GuardConfig,
    OptimConfig,
    ProbeConfig,
    Recipe,
    RunConfig,
    WandbConfig,
)
from ssl3d.schema import MISSING, ConfigError, did_you_mean, join

RECIPES = Path(__file__).resolve().parent.parent / "recipes"  # beside the package, installed or in the checkout
SPLITS = RECIPES / "downstream" / "splits"  # published splits that ship: JSON files

# The base type of what a slot's `_target_` may name; import paths, so that reading a recipe needs no torch.
SLOTS = {"model": "ssl3d.models.backbone.Backbone", "task": "ssl3d.tasks.task.Objective"}
GIVEN = {"model": (), "task": ("backbone",)}
EXTRA: dict[str, dict[str, tuple[Any, Any]]] = {
    "model": {
        "init": (str | None, None),
        "init_part": (Literal["all", "encoder"], "all"),
        "init_minimum": (float, 0.5),
        "init_inflate": (Literal["mean", "centre", "rotation"], "mean"),
        "init_cast": (bool, False),
        "init_trust": (bool, False),
    },
    "task": {},
}


Overrides = Sequence[str] | Mapping[str, Any]

# Ranges that a type cannot say.
_POSITIVE = ("run.steps", "run.accumulate", "data.batch_size", "data.crops_per_volume", "optim.lr", "probe.regions")
_NOT_NEGATIVE = (
    "run.seed", "run.log_every", "run.checkpoint_every", "run.preview_every", "run.holdout_every", "run.collapse_every",
    "optim.weight_decay", "probe.every",
    "optim.warmup_steps", "optim.lr_end", "data.workers", "data.cache_gb", "optim.weight_decay_end",
    "optim.encoder_freeze_until", "optim.rest_freeze_until",
)  # fmt: skip


def _range_faults(values: Mapping[str, Any]) -> list[str]:
    faults = []

    def number(key: str) -> float | None:
        section, name = key.split(".")
        v = values.get(section, {}).get(name)
        return v if isinstance(v, (int, float)) and not isinstance(v, bool) else None

    def require(key: str, ok: bool, rule: str) -> None:
        if not ok:
            faults.append(f"{key} is {number(key)}; it must be {rule}")

    for key in _POSITIVE:
        if (v := number(key)) is not None:
            require(key, v > 0, "above 0")
    for key in _NOT_NEGATIVE:
        if (v := number(key)) is not None:
            require(key, v >= 0, "0 or more")
    for key in ("data.holdout", "optim.momentum", "optim.ema"):
        if (v := number(key)) is not None:
            require(key, 0 <= v < 1, "at least 0 and below 1")
    for key in ("optim.clip_norm", "run.devices"):
        if (v := number(key)) is not None:
            require(key, v > 0, "above 0")
    if (v := number("model.init_minimum")) is not None:
        require("model.init_minimum", 0 <= v <= 1, "a share, from 0 to 1")
    if (v := number("optim.layer_decay")) is not None:
        require("optim.layer_decay", 0 < v <= 1, "above 0 and at most 1")
    return faults


def find(name: str, folder: Path = RECIPES, kind: str = "recipe") -> Path:
    """The YAML file of a recipe or suite: a path, or a name below `folder` with or without .yaml.

    Raises FileNotFoundError with the nearest names.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    short = name.removeprefix(f"{folder.name}/")  # a suite has two names: as one of all files, and as a suite
    inside = folder / (short if path.suffix == ".yaml" else f"{short}.yaml")
    if not path.is_absolute() and inside.is_file():
        return inside
    known = names(folder)
    there = "ssl3d recipes lists them" if kind == "recipe" else f"shipped are {', '.join(known)}"
    if kind == "recipe":  # `ssl3d copy` takes suites as well
        known += suites()
    if path.is_file():
        raise FileNotFoundError(f"'{name}' is no {kind}: the name of a YAML file ends in .yaml ({there})")
    if kind == "suite" and name in names():
        raise FileNotFoundError(f"'{name}' is a recipe, which `ssl3d train` takes, and no suite ({there})")
    near = difflib.get_close_matches(name, known, n=1)
    if Path(f"{name}.yaml").is_file():
        near = [f"{name}.yaml"]
    hint = f"; did you mean '{near[0]}'?" if near else ": no such file"
    raise FileNotFoundError(f"there is no {kind} '{name}'{hint} ({there})")


def suites() -> list[str]:
    """Names of the suites that ship, as `find` takes them: "downstream/hippocampus"."""
    return [f"downstream/{suite}" for suite in names(RECIPES / "downstream")]


def about(name: str) -> str:
    """What the first line of a shipped recipe or suite says of it."""
    first = find(name).read_text(encoding="utf-8").splitlines()[0]
    return first.partition(" - ")[2] if first.startswith("#") else ""


def names(folder: Path = RECIPES) -> list[str]:
    """Names of the YAML files below `folder`, without .yaml; of the recipes, those that `ssl3d train` takes."""
    found = (p.relative_to(folder).with_suffix("").as_posix() for p in sorted(folder.rglob("*.yaml")))
    return [n for n in found if n.split("/")[0] not in ("downstream", "sweeps")]


def find_split(name: str) -> Path:
    """The split file called `name`: a path, or one that ships, with or without .json; a path where there is neither."""
    path = Path(name)
    inside = SPLITS / f"{path.name.removesuffix('.json')}.json"
    return inside if not path.exists() and path.parent == Path() and inside.is_file() else path


def read(
    source: str | Path | Mapping[str, Any], folder: Path = RECIPES, overrides: Overrides = (), kind: str = "recipe"
) -> dict[str, Any]:
    """A YAML file (or its name below `folder`, or a mapping) as plain types, overridden, then interpolated.

    Overrides come before interpolations (`${model.init}`), which follow them. Raises ConfigError naming the file,
    FileNotFoundError with the nearest names.
    """
    if isinstance(source, Mapping):
        name, loaded = f"the {kind}", source
    else:
        name = str(source)
        path = find(name, folder, kind)
        try:
            loaded = OmegaConf.load(path)  # type: ignore[assignment]
        except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"{name}: not readable as YAML: {' '.join(str(error).split())}"]) from None
    values = override(_container(loaded, name, resolve=False), overrides)
    _refuse_other_kind(values, "this mapping" if isinstance(source, Mapping) else f"'{name}'", kind)
    return _container(values, name)


def _refuse_other_kind(values: Mapping[str, Any], called: str, kind: str) -> None:
    """Raise ConfigError when a suite was given as a recipe, or a recipe as a suite."""
    if kind == "recipe" and "measures" in values:
        raise ConfigError([f"{called} is a suite, which `ssl3d evaluate RUN --suite` takes, and no recipe"])
    if kind == "suite" and "task" in values and "measures" not in values:
        raise ConfigError([f"{called} is a recipe, which `ssl3d train` takes, and no suite"])


def _container(config: Any, name: str, resolve: bool = True) -> dict[str, Any]:
    try:
        if not OmegaConf.is_config(config):
            config = OmegaConf.create(dict(config))
        values = OmegaConf.to_container(config, resolve=resolve)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise ConfigError([f"{name}: {' '.join(str(error).split())}"]) from None
    if not isinstance(values, dict):
        raise ConfigError([f"{name} must be a mapping of sections, not a list"])
    return values  # type: ignore[return-value]


def override(values: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """Apply `key.sub=value` to a nested mapping (list items by number). A bare `None` means null, as wandb writes it.

    `overrides`: such texts, or one, or a mapping {"key.sub": value}, whose value takes the place of all that was there.
    Raises ConfigError on a text without '=' or a path through something that holds no keys.
    """
    faults = []
    if isinstance(overrides, Mapping):
        given = {key: schema.plain(value) for key, value in overrides.items()}
        for key, value in _container(given, "the overrides").items():
            fault = _assign(values, key, value)
            faults += [fault] if fault else []
        overrides = ()
    for text in [overrides] if isinstance(overrides, str) else overrides:
        key, sign, raw = text.partition("=")
        if not sign or not key:
            faults.append(f"'{text}' is not an override: write key.sub=value")
            continue
        try:
            parsed = None if raw == "None" else OmegaConf.to_container(OmegaConf.from_dotlist([f"v={raw}"]))["v"]  # type: ignore[index,call-overload]
        except (YAMLError, OmegaConfBaseException) as error:
            faults.append(f"{key}: the value '{raw}' is not readable as YAML: {' '.join(str(error).split())}")
            continue
        fault = _assign(values, key, parsed)
        faults += [fault] if fault else []
    if faults:
        raise ConfigError(faults)
    return values


def _assign(values: dict[str, Any], key: str, value: Any) -> str | None:
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate([*parents, last]):
        here = ".".join(key.split(".")[:depth])
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                return f"{key}: {here} is a list of {len(node)}; '{part}' is none of its places"
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
        else:
            return f"{key}: {here} is {node!r} and holds no key '{part}'"
        if depth == len(parents):
            node[index] = value
        else:
            if isinstance(node, dict) and node.get(index) is None:
                node[index] = {}
            node = node[index]
    return None


def load(source: str | Path | Mapping[str, Any], overrides: Overrides = (), unset: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe; every fault is collected before anything heavy starts.

    `unset`: keys that may be missing (`ssl3d check` allows data.store). Raises ConfigError, FileNotFoundError.
    """
    values = read(source, overrides=overrides)
    _suites_by_name(values)
    for key in unset:
        section, name = key.split(".")
        if isinstance(values.get(section), dict) and values[section].get(name, MISSING) == MISSING:
            values[section][name] = ""
    sections = {f.name: f.type for f in dataclasses.fields(Recipe)}
    faults = [f"unknown section '{k}'{did_you_mean(str(k), list(sections))}" for k in values if k not in sections]
    completed: dict[str, Any] = {}
    for name, cls in _SECTIONS.items():
        node = values.get(name, {})
        if not isinstance(node, Mapping):
            faults.append(f"{name} must be a mapping, not {schema.describe(node)}")
            continue
        completed[name], found = schema.check_fields(node, schema.parameters(cls), name)
        faults += found
    for name, path in SLOTS.items():
        if name not in values:
            faults.append(f"section '{name}' is missing: give {join(name, schema.TARGET)}")
            continue
        base = schema.import_object(path, name)
        completed[name], found = schema.check_target(values[name], base, name, GIVEN[name], EXTRA[name])
        faults += found
    faults += _range_faults(completed)
    if faults:
        raise ConfigError([_elsewhere(fault, completed) for fault in faults])
    built = {name: schema.build(completed[name], cls) for name, cls in _SECTIONS.items()}
    return Recipe(model=completed["model"], task=completed["task"], **built)


def _elsewhere(fault: str, completed: Mapping[str, Any]) -> str:
    """A fault; of a key that another section has, such as data.patch_size, with that key in place of a similar one."""
    found = re.match(r"unknown key '(\w+)\.(\w+)'", fault)
    meant = [f"'{name}.{found[2]}'" for name, node in completed.items() if found and found[2] in node]
    return f"{found[0]}; did you mean {' or '.join(meant)}?" if found and meant else fault


def _suites_by_name(values: dict[str, Any]) -> None:
    """Let a lone name or file in guard.suites stand for {suite: NAME}."""
    node = values.get("guard")
    if isinstance(node, dict) and isinstance(node.get("suites"), list):
        node["suites"] = [{"suite": suite} if isinstance(suite, str) else suite for suite in node["suites"]]


_SECTIONS: dict[str, type] = {
    "run": RunConfig, "data": DataConfig, "optim": OptimConfig, "probe": ProbeConfig, "wandb": WandbConfig,
    "guard": GuardConfig,
}  # fmt: skip


def build_model(recipe: Recipe) -> Any:
    """The backbone of a recipe, randomly initialised. Raises ConfigError naming the key that is out of range."""
    node = {k: v for k, v in recipe.model.items() if k not in EXTRA["model"]}
    return _build("model", node)


def build_task(recipe: Recipe, backbone: Any) -> Any:
    """The objective of a recipe around `backbone`. Raises ConfigError naming the key that is out of range."""
    return _build("task", recipe.task, backbone=backbone)


def _build(section: str, node: Mapping[str, Any], **given: Any) -> Any:
    try:
        return schema.build(node, **given)
    except ConfigError:
        raise
    except ValueError as error:  # constructors name the key they refuse
        message = str(error)
        named = message.startswith((f"{section}.", f"{section} "))
        raise ConfigError([message if named else f"{section}: {message}"]) from error


def read_json(path: str, key: str) -> Any:
    """The content of the JSON file that `key` names. Raises ConfigError naming both."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError([f"{key}: there is no file '{path}'"]) from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"{key}: '{path}' is not readable as JSON ({error})"]) from None


def patients_of(part: Any) -> list[str] | None:
    """The patients of one part of a split file: a list, or {domain: list}; None where it is neither."""
    if isinstance(part, Mapping) and all(isinstance(own, list) for own in part.values()):
        return [str(patient) for own in part.values() for patient in own]
    return [str(patient) for patient in part] if isinstance(part, list) else None


def subjects(value: str | list[str] | None, key: str) -> set[str] | None:
    """The subjects of data.include or data.exclude: a list, or a JSON file (a list, or a split by role; shipped
    splits go by their names).

    Of a split, `include` takes the pool/train patients and `exclude` the validation and test patients.
    Raises ConfigError naming the key and file.
    """
    if value is None:
        return None
    if isinstance(value, list):
        return {str(v) for v in value}
    content = read_json(str(find_split(value)), key)
    roles = ("pool", "train") if key.endswith("include") else ("validation", "test")
    if isinstance(content, Mapping):
        chosen = [found for found in (patients_of(content.get(r)) for r in roles) if found is not None]
        if not chosen:
            raise ConfigError([f"{key}: '{value}' names no {' or '.join(roles)} patients"])
        content = [p for part in chosen for p in part]
    if not isinstance(content, list):
        raise ConfigError([f"{key}: '{value}' must hold a list of patients or a split"])
    return {str(p) for p in content}
