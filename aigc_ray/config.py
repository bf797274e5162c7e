"""Configurations are frozen dataclasses; this reads and changes them by dotted keys."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from aigc_ray.errors import UserError

Config = TypeVar("Config")


def parse(arguments: Iterable[str]) -> dict[str, str]:
    """`key=value` words of a command line as a dictionary."""
    pairs: dict[str, str] = {}
    for word in arguments:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise UserError(f"{word!r} is not a setting; settings are written key=value")
        pairs[key] = value
    return pairs


def settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting of a configuration by its dotted key; a nested configuration is opened."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.metadata.get("learned") or field.name == "schema":  # learned from data, not set
            continue
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= settings(value, f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = value
    return found


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with `changes` made: dotted keys, values typed or as text.

    A key may be written without its prefix where only one setting ends so: `loss` is `task.loss`.

    Raises:
        UserError: a key that does not exist (with the nearest that does), or a value that the
            setting cannot take.
    """
    known = settings(config)
    for key, value in changes.items():
        config = _replace(config, _full_key(key, known), value)
    return config


def _full_key(key: str, known: Mapping[str, Any]) -> str:
    if key in known:
        return key
    ends = [name for name in known if name.endswith(f".{key}")]
    if len(ends) == 1:
        return ends[0]
    near = difflib.get_close_matches(key, [*known, *(k.rpartition(".")[2] for k in known)], n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; settings are {', '.join(sorted(known))}"
    raise UserError(f"there is no setting {key!r}{hint}")


def _replace(config: Any, key: str, value: Any) -> Any:
    head, _, rest = key.partition(".")
    if rest:
        value = _replace(getattr(config, head), rest, value)
    else:
        value = convert(key, typing.get_type_hints(type(config))[head], value)
    try:
        return dataclasses.replace(config, **{head: value})
    except ValueError as fault:  # a configuration checks itself in __post_init__
        raise UserError(str(fault)) from None


def convert(key: str, kind: Any, value: Any) -> Any:
    """`value`, perhaps text, as the type `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        for choice in arguments:
            if str(choice) == str(value):
                return choice
        raise UserError(f"{key} is one of {', '.join(map(str, arguments))}; got {value!r}")
    if origin in (Union, types.UnionType):
        if value is None or str(value).lower() in ("none", ""):
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return convert(key, kind, value)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else str(value).split(",")
        return tuple(convert(key, arguments[0], item) for item in items)
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                str(value).lower()
            ]
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError(value)
        return kind(value)
    except (KeyError, ValueError, TypeError):
        words = {int: "a whole number", float: "a number", bool: "true or false"}
        expected = words.get(kind, str(kind))
        raise UserError(f"{key} is {expected}; got {value!r}") from None


def to_json(config: Any) -> dict[str, Any]:
    """The settings, JSON-safe, by dotted key."""
    plain = settings(config)
    json.dumps(plain)  # a setting that JSON cannot hold is a fault of the programmer's: fail here
    return plain
