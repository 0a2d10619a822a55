"""What methods and networks are called: by their class, and where several have one, by what differs between them.

The one place of it. A digest is the last resort, where nothing short enough for a name tells two of them apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from downstream.methods import bound

LONGEST = 24  # letters of a value in a name
SECTIONS = ("task", "model", "optim", "data", "run")  # of a recipe, in the order in which they are asked what differs
SIZE, FEATURES, PARAMETERS = "size", "features", "parameters"
TARGET, PARTS = "_target_", "*"  # the class that a mapping is of; the keys of one whose keys were chosen freely
DIGEST = re.compile(r"-[0-9a-f]{6}$")


@dataclass(frozen=True)
class Network:
    """A network as arms.json describes it: import path and arguments, features of its stages, parameters, digest."""

    target: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    channels: Sequence[int] = ()
    parameters: int | None = None
    digest: str = ""

    @property
    def kind(self) -> str:
        return self.target.rpartition(".")[2]

    def facts(self) -> dict[str, Any]:
        """What may tell it from another of its class, the plainest first.

        A size whose stages were changed by hand is no fact: it would name another network.
        """
        facts: dict[str, Any] = {}
        if SIZE in self.kwargs and not self.kwargs.get("arch_kwargs"):
            facts[SIZE] = self.kwargs[SIZE]
        if channels := tuple(self.channels) or self._built():
            facts[FEATURES] = "-".join(str(n) for n in dict.fromkeys((channels[0], channels[-1])))
        facts |= {key: value for key, value in flattened(self.kwargs).items() if key != SIZE}
        if self.parameters is not None:
            facts[PARAMETERS] = f"{self.parameters / 1e6:.3g} M"
        return facts

    def _built(self) -> tuple[int, ...]:
        """The features of its stages, for evaluations that do not say them; none of a class that is gone."""
        import torch

        from ssl3d.models.backbone import BackboneSpec, build_backbone

        try:
            with torch.device("meta"):  # shapes alone: no memory and no time, whatever its size
                return build_backbone(BackboneSpec(self.target, dict(self.kwargs))).channels
        except (ImportError, AttributeError, TypeError, ValueError, RuntimeError):
            return ()


def network_names(networks: Sequence[Network]) -> list[str]:
    """ "ViT", or of several "ViT-tiny", "ResEncUNet 16-128" (features of the first and last stage), ..., in order."""
    named = [""] * len(networks)
    for kind in dict.fromkeys(network.kind for network in networks):
        places = [i for i, network in enumerate(networks) if network.kind == kind]
        facts = [networks[i].facts() if len(places) > 1 else {} for i in places]
        words = [kind + "".join(_of_network(key, value) for key, value in own) for own in told_apart(facts)]
        for i, name in zip(places, words):
            named[i] = name if words.count(name) == 1 else f"{kind}-{networks[i].digest[:6]}"
    return named


def _of_network(key: str, value: str) -> str:
    if key == PARAMETERS:
        return f", {value} parameters"
    return {SIZE: f"-{value}", FEATURES: f" {value}"}.get(key, f", {key} {value}")


def method_names(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{method: "PositionRegression", or where several are of that task "PositionRegression, mask_share 0.5"}.

    `recipes` {method (downstream.methods): its pre-training recipe}; without one ({}) only its digest tells it apart.
    """
    found: dict[str, str] = {}
    for name in dict.fromkeys(short(method) for method in recipes):
        alike = [method for method in recipes if short(method) == name]
        words = [
            ", ".join([name, *(f"{key} {value}" for key, value in own)])
            for own in told_apart([_settings(recipes[method]) for method in alike], "task.")
        ]
        found |= {method: own if words.count(own) == 1 else method for method, own in zip(alike, words)}
    return found


def short(method: str) -> str:
    """ "MAE" of "MAE-3f2a1b"; a name that says what differs has no digest."""
    return method if ", " in method else DIGEST.sub("", method)


def shown(methods: Iterable[str]) -> dict[str, str]:
    """{method: the name a report gives it}: without the digest where that leaves no two methods alike."""
    count = Counter(short(method) for method in set(methods))
    return {method: short(method) if count[short(method)] == 1 else method for method in sorted(set(methods))}


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's weights, the pretext task's settings first."""
    sections = [*SECTIONS, *(name for name in recipe if name not in SECTIONS)]
    found: dict[str, Any] = {}
    for name in sections:
        found |= flattened(bound(name, recipe.get(name)), name)
    return found


def told_apart(settings: Sequence[Mapping[str, Any]], first: str = "") -> list[list[tuple[str, str]]]:
    """For each of several things of one name what tells it from the others: [(key, value in words), ...].

    Keys that begin with `first` are asked before all others. Only keys that all of them have, with values short enough
    for a name, are asked: those that nothing tells apart get the same words.
    """
    keys = list(dict.fromkeys(key for own in settings for key in own))
    table = {key: [in_words(own[key]) if key in own else "" for own in settings] for key in keys}
    table = {key: words for key, words in table.items() if all(words) and len(set(words)) > 1}
    leaves = Counter(_leaf(key) for key in keys)
    chosen = _telling({key: words for key, words in table.items() if key.startswith(first)}, len(settings))
    if len(set(zip(*(table[key] for key in chosen)))) < len(settings):
        chosen = _telling(table, len(settings))
    names = {key: _leaf(key) if leaves[_leaf(key)] == 1 else _leaf(key, 2) for key in chosen}
    return [[(names[key], table[key][i]) for key in chosen] for i in range(len(settings))]


def _telling(table: Mapping[str, Sequence[str]], count: int) -> list[str]:
    """The first key whose words tell all `count` things apart; else keys one by one, each the one that tells most."""
    for key, words in table.items():
        if len(set(words)) == count:
            return [key]
    chosen: list[str] = []
    kinds = 1
    while kinds < count and table:
        found = {key: len(set(zip(*(table[k] for k in (*chosen, key))))) for key in table}
        best = max(found, key=lambda key: found[key])
        if found[best] == kinds:
            break
        chosen, kinds = [*chosen, best], found[best]
    return chosen


def _leaf(key: str, parts: int = 1) -> str:
    """The end of a key: "mask_share" of "task.mask_share", "Gamma.p" of an augmentation's; of a class its slot."""
    names = key.removesuffix(f".{TARGET}").removesuffix(f".{PARTS}").split(".")
    return ".".join(names[-2:] if parts == 2 or (len(names) > 1 and names[-2][:1].isupper()) else names[-1:])


def flattened(node: Any, key: str = "") -> dict[str, Any]:
    """{"task.mask_share": 0.5, ...}.

    Of a mapping whose keys were chosen freely (parts of a task) also those: {"task.tasks.*": "mae + fusion"}. Entries
    of a list that are classes stand under their names: {"augment.transforms.Gamma.p": 0.3}.
    """
    if isinstance(node, Mapping):
        free = key and TARGET not in node
        found: dict[str, Any] = {f"{key}.{PARTS}": " + ".join(str(name) for name in node)} if free else {}
        for name, value in node.items():
            found |= flattened(value, f"{key}.{name}" if key else str(name))
        return found
    if isinstance(node, list | tuple) and any(isinstance(item, Mapping) for item in node):
        found = {key: " + ".join(_class(item) for item in node)}
        for item in node:
            found |= flattened(item, f"{key}.{_class(item)}")
        return found
    return {key: node}


def _class(item: Any) -> str:
    return str(item.get(TARGET, "")).rpartition(".")[2] if isinstance(item, Mapping) else str(item)


def in_words(value: Any) -> str:
    """A setting in a name: "0.5", "24x32x24", "none"; empty where it is too long for one."""
    if isinstance(value, list | tuple):
        parts = [in_words(item) for item in value]
        words = ("x" if len(parts) == 3 else "-").join(parts) if all(parts) and len(parts) else ""
    elif value is None or isinstance(value, bool):
        words = {None: "none", True: "true", False: "false"}[value]
    elif isinstance(value, int | float):
        words = f"{value:g}"
    elif isinstance(value, Mapping):
        words = ""
    else:
        words = Path(str(value)).name.rpartition(".")[2] if _is_target(str(value)) else Path(str(value)).name
    return words if len(words) <= LONGEST else ""


def _is_target(value: str) -> bool:
    """Whether a text is the import path of a class."""
    return re.fullmatch(r"[a-z_][\w.]*\.[A-Z]\w*", value) is not None
