"""Checks of values in a checkpoint's JSON files; messages name the file, the key and the value.

A check names the key and the value. Its caller adds the file and the section with `within`.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, cast


class CheckpointError(ValueError):
    """The checkpoint cannot be used as it is; the message names the file and the key or tensor."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a checkpoint file, or raise `CheckpointError` naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a checkpoint?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return cast("dict[str, Any]", value)


@contextmanager
def within(place: str) -> Iterator[None]:
    """Put the place before the message of a `CheckpointError` that is raised in the `with`."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the JSON object under `key`, or raise `CheckpointError`."""
    value = config.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"an object {key!r} is needed, got {value!r}")
    return cast("Mapping[str, Any]", value)


def refuse_unknown(config: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse unknown keys, because they may change the network."""
    unknown = sorted(config.keys() - set(known))
    if unknown:
        raise CheckpointError(
            f"{', '.join(f'{key}={config[key]!r}' for key in unknown)} is not implemented; "
            "remove the key if you know that it does not change the network"
        )


def refuse_missing(config: Mapping[str, Any], needed: Iterable[str]) -> None:
    """Refuse a file without these keys."""
    missing = sorted(set(needed) - config.keys())
    if missing:
        raise CheckpointError(f"{', '.join(missing)} is missing")


def require(condition: bool, key: str, value: object) -> None:
    """Refuse the value of a key unless the condition holds."""
    if not condition:
        raise CheckpointError(
            f"{key}={value!r} is not implemented or does not fit the other values"
        )


def require_false(config: Mapping[str, Any], *keys: str) -> None:
    """Refuse each of these keys unless it is absent or false."""
    for key in keys:
        require(not config.get(key, False), key, config.get(key))


def require_positive(config: object, keys: Iterable[str]) -> None:
    """Refuse attributes of `config` that are not above zero."""
    for key in keys:
        require(getattr(config, key) > 0, key, getattr(config, key))


def require_types(config_class: type, values: Mapping[str, Any]) -> None:
    """Refuse values that do not have the type of their field.

    Otherwise arithmetic would fail on a string later, with a message that does not name the key.
    """
    checks = {
        int: is_integer,
        int | None: lambda value: value is None or is_integer(value),
        float: is_finite,
        bool: lambda value: isinstance(value, bool),
    }
    for field in fields(config_class):
        if field.name in values and field.type in checks:
            value = values[field.name]
            require(checks[field.type](value), field.name, value)


def is_integer(value: object) -> bool:
    """Say whether a value is an integer, neither a float like 2.0 nor a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """Say whether a value is a number, and neither NaN nor infinite nor too large for a float."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return math.isfinite(value)
    except OverflowError:
        return False
