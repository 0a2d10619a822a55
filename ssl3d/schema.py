"""Constructor signatures as the schema of YAML: check every key at every depth, then build. Imports nothing of ours.

A mapping with `_target_` names a class by its import path; it is accepted only if the class is of the slot's base type.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, ClassVar, Literal, Union

TARGET = "_target_"
MISSING = "???"


class ConfigError(ValueError):
    """What is wrong with a recipe or suite: `faults`, one plain sentence each."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


class Later:
    """A checked `_target_` mapping whose object is made later, by code that supplies what a recipe cannot say.

    Subclass it and annotate a constructor's parameter with the subclass. `base`: what the `_target_` must be; `given`:
    constructor parameters that `make` will get; `extra`: further keys {name: (annotation, default)} of the slot, which
    are in `values`.
    """

    base: ClassVar[type] = object
    given: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[Mapping[str, tuple[Any, Any]]] = {}

    def __init__(self, node: Mapping[str, Any]) -> None:
        self.node = {k: v for k, v in node.items() if k not in self.extra}
        self.values = {k: node.get(k, default) for k, (_, default) in self.extra.items()}

    def make(self, **given: Any) -> Any:
        """The object. Raises ValueError as its constructor does."""
        return build(self.node, **given)


def import_object(path: str, key: str) -> Any:
    """The object at a dotted import path. Raises ConfigError naming `key` when there is none."""
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name) if module_name else None
    except ModuleNotFoundError as error:
        if error.name and not (module_name + ".").startswith(error.name + "."):
            raise  # the module exists but one of its own imports is not installed
        raise ConfigError([f"{key}: there is no module '{module_name}' ('{path}' is not importable)"]) from None
    if module is None or not hasattr(module, name):
        names = [n for n in dir(module) if not n.startswith("_")] if module else []
        raise ConfigError([f"{key}: module '{module_name}' has no '{name}'{did_you_mean(name, names)}"])
    return getattr(module, name)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """'; did you mean X?' for a near match, else the known words."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known are {', '.join(sorted(known))}" if known else ""


@functools.cache
def parameters(cls: type) -> dict[str, tuple[Any, Any]]:
    """{name: (annotation, default or inspect.Parameter.empty)} of a class's constructor."""
    init = cls.__init__  # type: ignore[misc]
    factories = {}
    if not dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(init)
    else:  # its fields: the annotations of a generated __init__ are read in the module of the last base alone
        hints = typing.get_type_hints(cls)
        factories = {f.name: f.default_factory for f in dataclasses.fields(cls)}
    found = {}
    for name, p in list(inspect.signature(init).parameters.items())[1:]:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise TypeError(f"{cls.__name__}: *args and **kwargs cannot be checked; name the parameters")
        factory = factories.get(name, dataclasses.MISSING)
        default = p.default if factory is dataclasses.MISSING else factory()
        found[name] = (hints.get(name, Any), default)
    return found


def target_class(node: Mapping[str, Any], base: type, key: str) -> type:
    """The class a `_target_` names, if it is a `base`. Raises ConfigError."""
    if not isinstance(node.get(TARGET), str):
        raise ConfigError([f"{key}.{TARGET} is missing: give the import path of a {base.__name__}"])
    cls = import_object(node[TARGET], f"{key}.{TARGET}")
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError([f"{key}.{TARGET}: '{node[TARGET]}' is no {base.__name__}"])
    return cls


def check_target(
    node: Any, base: type, key: str, given: Sequence[str] = (), extra: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Check a `_target_` mapping against its class: -> (completed mapping, faults).

    `given`: constructor parameters supplied by code; `extra`: further keys {name: (annotation, default)} of the slot.
    """
    if not isinstance(node, Mapping):
        return {}, [f"{key} must be a mapping with {TARGET}, not {describe(node)}"]
    try:
        cls = target_class(node, base, key)
    except ConfigError as error:
        return dict(node), error.faults
    known = {k: v for k, v in parameters(cls).items() if k not in given} | dict(extra or {})
    values = {k: v for k, v in node.items() if k != TARGET}
    completed, faults = check_fields(values, known, key)
    return {TARGET: node[TARGET], **completed}, faults


def check_fields(
    values: Mapping[str, Any], known: Mapping[str, tuple[Any, Any]], key: str
) -> tuple[dict[str, Any], list[str]]:
    """Check a mapping against {name: (annotation, default)}: -> (completed values, faults)."""
    faults = []
    meant = set()  # keys that a typo stood for: not also reported as missing
    for name in values:
        if name not in known:
            faults.append(f"unknown key '{join(key, name)}'{did_you_mean(str(name), list(known))}")
            meant.update(difflib.get_close_matches(str(name), list(known), n=1))
    completed: dict[str, Any] = {}
    for name, (annotation, default) in known.items():
        path = join(key, name)
        if name in values and values[name] != MISSING:
            completed[name], found = check_value(values[name], annotation, path)
            faults += found
        elif (name in values or default is inspect.Parameter.empty) and name not in meant:
            faults.append(f"{path} is not set: give it, for example {path}=VALUE")
        elif name not in meant:
            completed[name] = plain(default)
    return completed, faults


def check_value(value: Any, annotation: Any, key: str) -> tuple[Any, list[str]]:
    """Check one value against a type annotation: -> (converted value, faults)."""
    if annotation is Any:
        return value, []
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        if value in arguments and type(value) in {type(a) for a in arguments}:
            return value, []
        choices = [str(a) for a in arguments]
        return value, [f"{key} is {value!r}; it must be one of {', '.join(choices)}"]
    if origin in (Union, types.UnionType):
        return _check_union(value, arguments, annotation, key)
    if origin in (list, Sequence) or annotation in (list, Sequence) or origin is tuple:
        return _check_sequence(value, origin or list, arguments, annotation, key)
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return _check_mapping(value, arguments, key)
    if later := _later(annotation):
        return check_target(value, later.base, key, later.given, later.extra)
    if dataclasses.is_dataclass(annotation) and isinstance(value, Mapping) and TARGET not in value:
        return check_fields(value, parameters(annotation), key)  # type: ignore[arg-type]
    if isinstance(annotation, type) and isinstance(value, Mapping) and TARGET in value:
        return check_target(value, annotation, key)
    return _check_scalar(value, annotation, key)


def _later(annotation: Any) -> type[Later] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Later) else None


def _check_union(value: Any, options: Sequence[Any], annotation: Any, key: str) -> tuple[Any, list[str]]:
    if value is None and type(None) in options:
        return None, []
    all_faults = []
    for option in (o for o in options if o is not type(None)):
        converted, faults = check_value(value, option, key)
        if not faults:
            return converted, []
        all_faults.append((isinstance(value, Mapping) and TARGET in value and isinstance(option, type), faults))
    deep = [faults for nested, faults in all_faults if nested]
    if len(all_faults) == 1 or deep:
        return value, (deep[0] if deep else all_faults[0][1])
    return value, [f"{key} is {value!r}; it must be {describe_type(annotation)}"]


def _check_sequence(
    value: Any, origin: Any, arguments: tuple[Any, ...], annotation: Any, key: str
) -> tuple[Any, list[str]]:
    if not isinstance(value, (list, tuple)):
        return value, [f"{key} is {value!r}; it must be {describe_type(annotation)}"]
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            return value, [f"{key} has {len(value)} values; it must have {len(arguments)}"]
        items = list(arguments)
    else:
        items = [arguments[0] if arguments else Any] * len(value)
    checked = [check_value(v, a, f"{key}.{i}") for i, (v, a) in enumerate(zip(value, items))]
    return [v for v, _ in checked], [f for _, faults in checked for f in faults]


def _check_mapping(value: Any, arguments: tuple[Any, ...], key: str) -> tuple[Any, list[str]]:
    if not isinstance(value, Mapping):
        return value, [f"{key} is {value!r}; it must be a mapping"]
    item = arguments[1] if len(arguments) == 2 else Any
    checked = {k: check_value(v, item, join(key, str(k))) for k, v in value.items()}
    return {k: v for k, (v, _) in checked.items()}, [f for _, faults in checked.values() for f in faults]


def _check_scalar(value: Any, annotation: Any, key: str) -> tuple[Any, list[str]]:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is float and is_number:
        if math.isfinite(value):
            return float(value), []
        return value, [f"{key} is {value}; it must be a finite number"]
    if annotation is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 (no dot) as text
        try:
            return check_value(float(value), float, key)
        except ValueError:
            pass
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value), []
    if annotation is bool and isinstance(value, bool):
        return value, []
    if isinstance(annotation, type) and isinstance(value, annotation) and not isinstance(value, bool):
        return value, []
    return value, [f"{key} is {value!r}; it must be {describe_type(annotation)}"]


def build(node: Any, annotation: Any = Any, **given: Any) -> Any:
    """Build a checked value: mappings with `_target_` become objects, sequences and dataclasses what they are typed as.

    `given` are passed to the outermost constructor. What is typed as Later stays to be made.
    """
    if later := _later(annotation):
        return later(node)
    if isinstance(node, Mapping) and TARGET in node:
        cls = import_object(node[TARGET], TARGET)
        known = parameters(cls)
        return cls(**{k: build(v, known[k][0]) for k, v in node.items() if k != TARGET}, **given)
    options = [a for a in (typing.get_args(annotation) or (annotation,)) if dataclasses.is_dataclass(a)]
    if isinstance(node, Mapping):
        if options and typing.get_origin(annotation) not in (dict, Mapping):
            known = parameters(options[0])  # type: ignore[arg-type]
            return options[0](**{k: build(v, known[k][0]) for k, v in node.items()})  # type: ignore[operator]
        arguments = typing.get_args(annotation)
        item = arguments[1] if typing.get_origin(annotation) in (dict, Mapping) and len(arguments) == 2 else Any
        return {k: build(v, item) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        items = [build(v, options[0] if options else Any) for v in node]
        return tuple(items) if _is_tuple(annotation) else items
    return node


def _is_tuple(annotation: Any) -> bool:
    return typing.get_origin(annotation) is tuple or any(
        typing.get_origin(a) is tuple for a in typing.get_args(annotation)
    )


def plain(value: Any) -> Any:
    """A default value in YAML's types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, PurePath) else value


def join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def flat(node: Any, key: str = "") -> dict[str, Any]:
    """{"run": {"seed": 0}} -> {"run.seed": 0}; an empty mapping is a value."""
    if isinstance(node, Mapping) and node:
        return {k: v for name, sub in node.items() for k, v in flat(sub, join(key, str(name))).items()}
    return {key: node}


def describe(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def describe_type(annotation: Any) -> str:
    """A type annotation in words a user reads."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(a) for a in arguments)
    if origin is Literal:
        return " or ".join(repr(a) for a in arguments)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} ({describe_type(arguments[0])})"
    if origin in (list, tuple, Sequence):
        return f"a list ({describe_type(arguments[0])})"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return words.get(annotation) or f"a {getattr(annotation, '__name__', annotation)} ({TARGET}: ...)"
