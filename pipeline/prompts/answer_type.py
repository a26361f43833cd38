"""`AnswerType`: the Arrow type of the answers that follow a JSON Schema, and how they are read.

    object -> struct     string -> string     integer -> int64      number -> float64
    array  -> list       boolean -> bool      a key left out, or null beside a type -> null

Types nest to any depth. What a schema may not be where a column comes of it (several types, keys
without names, ...) is refused with its place; nothing becomes text or is dropped unseen.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

_SCALARS = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "null": None,
}
_OF_PYTHON = {
    str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null",
    dict: "object", list: "array",
}  # fmt: skip
_JOINS = ("$ref", "allOf", "anyOf", "oneOf")  # each says the type by other schemas
_SAYS = ("type", "enum", "const", "properties", "items", "prefixItems")
_MAX_TYPES = 1000  # references to references can double with every line
_MAX_DEPTH = 40  # Arrow's files nest 64 deep at most

_Place = tuple[str, ...]  # keys from the root of a schema


@dataclass(frozen=True)
class AnswerType:
    """What the column of an answer is."""

    kind: pa.DataType
    schema: str  # JSON text: as given, and its objects have no keys but those that they name

    def read(self, text: str) -> Any:
        """The value of a whole answer, for an array of `kind`.

        Raises:
            ValueError: the text is no JSON of this type, or holds a number or a character that the
                type has no place for.
        """
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the answer is no JSON ({error})") from error
        return _as(value, self.kind)


@lru_cache(maxsize=64)
def answer_type(schema: str) -> AnswerType:
    """The type of the answers that follow a schema.

    Args:
        schema: JSON text of a JSON Schema; objects that leave `additionalProperties` open are
            closed, for a column has no place for keys that it does not know.

    Raises:
        ValueError: no column has that type; the message names the place in the schema.
    """
    try:
        root = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the schema is not JSON: {error}") from error
    kind = _Derivation(root).column(root, (), ())
    return AnswerType(kind, json.dumps(root))


class _Derivation:
    """One walk over a schema, which closes the objects that it meets.

    Args:
        root: the schema; references are looked up in it.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._num_types = 0

    def column(self, node: Any, place: _Place, refs: Sequence[str]) -> pa.DataType:
        """The type of what follows `node`, which stands at `place` and within references `refs`."""
        kind = self._kind(node, place, refs)
        if kind is None:
            raise _refusal(place, "is always null")
        return kind

    def _kind(self, node: Any, place: _Place, refs: Sequence[str]) -> pa.DataType | None:
        """As `column`, and None for null."""
        self._num_types += 1
        if self._num_types > _MAX_TYPES or len(place) > _MAX_DEPTH:
            raise _refusal(place, f"is beyond {_MAX_TYPES} types or {_MAX_DEPTH} levels")
        if not isinstance(node, dict):
            raise _refusal(place, "says no type")
        if joins := [key for key in _JOINS if key in node]:
            if len(joins) > 1 or any(key in node for key in _SAYS):
                raise _refusal(place, f"has {joins[0]} beside other keys that say its type")
            return self._joined(joins[0], node[joins[0]], place, refs)
        if "type" in node:
            names = node["type"] if isinstance(node["type"], list) else [node["type"]]
        elif "enum" in node:
            names = [_OF_PYTHON[type(value)] for value in _list(node["enum"], "enum", place)]
        elif "const" in node:
            names = [_OF_PYTHON[type(node["const"])]]
        else:
            raise _refusal(place, "says no type")
        return _one([self._named(name, node, place, refs) for name in names], place)

    def _joined(
        self, key: str, value: Any, place: _Place, refs: Sequence[str]
    ) -> pa.DataType | None:
        if key == "$ref":
            if value in refs:
                raise _refusal(place, f"refers to itself ({value})")
            return self._kind(self._at(value, place), place, (*refs, value))
        if key == "allOf" and isinstance(value, list) and len(value) > 1:
            raise _refusal(place, "joins several schemas by allOf")
        return _one([self._kind(each, place, refs) for each in _list(value, key, place)], place)

    def _at(self, ref: Any, place: _Place) -> Any:
        """What a reference within the schema names."""
        node = self._root
        pointer = unquote(ref) if isinstance(ref, str) else ""
        if pointer != "#" and not pointer.startswith("#/"):
            raise _refusal(place, f"refers to {ref!r}, which is not within the schema")
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, dict) or key not in node:
                raise _refusal(place, f"refers to {ref!r}, which is not there")
            node = node[key]
        return node

    def _named(
        self, name: Any, node: dict[str, Any], place: _Place, refs: Sequence[str]
    ) -> pa.DataType | None:
        """The type of that name, which is one that `node` may have."""
        if name == "object":
            return self._struct(node, place, refs)
        if name == "array":
            if "prefixItems" in node or isinstance(node.get("items"), list):
                raise _refusal(place, "is an array with a type for each place")
            return pa.list_(self.column(node.get("items"), (*place, "items"), refs))
        if not isinstance(name, str) or name not in _SCALARS:
            raise _refusal(place, f"has the type {name!r}, which JSON Schema does not know")
        return _SCALARS[name]

    def _struct(self, node: dict[str, Any], place: _Place, refs: Sequence[str]) -> pa.DataType:
        named = node.get("properties")
        is_open = node.setdefault("additionalProperties", False) is not False
        if is_open or "patternProperties" in node:
            raise _refusal(place, "is an object with keys of any name")
        if not isinstance(named, dict) or not named:
            raise _refusal(place, "is an object that names no properties")
        columns = {
            key: self.column(value, (*place, "properties", key), refs)
            for key, value in named.items()
        }
        return pa.struct(list(columns.items()))


def _list(value: Any, key: str, place: _Place) -> list[Any]:
    if not isinstance(value, list):
        raise _refusal(place, f"has {key} that is no list")
    return value


def _one(kinds: Sequence[pa.DataType | None], place: _Place) -> pa.DataType | None:
    """The type that all are but for nulls."""
    distinct = [kind for kind in dict.fromkeys(kinds) if kind is not None]
    if len(distinct) > 1:
        raise _refusal(place, f"has several types: {', '.join(map(str, distinct)):.200}")
    return distinct[0] if distinct else None


def _refusal(place: _Place, reason: str) -> ValueError:
    keys = (key.replace("~", "~0").replace("/", "~1") for key in place)
    return ValueError(f"no column has the type of its schema: {'/'.join(('#', *keys))} {reason}")


def _as(value: Any, kind: pa.DataType) -> Any:
    """A value of JSON as one of the type."""
    if value is None:
        return None
    if pa.types.is_struct(kind) and isinstance(value, dict):
        fields = {field.name: field.type for field in kind}
        if unknown := value.keys() - fields.keys():
            raise ValueError(f"the answer has a key {min(unknown)!r}, which the schema does not")
        return {name: _as(value.get(name), field) for name, field in fields.items()}
    if pa.types.is_list(kind) and isinstance(value, list):
        return [_as(each, kind.value_type) for each in value]
    if _holds(kind, value):
        return {pa.int64(): int, pa.float64(): float}.get(kind, type(value))(value)
    raise ValueError(f"the answer holds {value!r:.60}, which is no {kind}")


def _holds(kind: pa.DataType, value: Any) -> bool:
    """Whether a value that is no object, array or null is of the type."""
    if isinstance(value, bool):
        return kind == pa.bool_()
    if isinstance(value, str):  # JSON can write half a character: "\ud800"
        return kind == pa.string() and not any("\ud800" <= each <= "\udfff" for each in value)
    if not isinstance(value, int | float):
        return False
    if kind == pa.int64():
        return -(1 << 63) <= value < 1 << 63 and value == int(value)
    return kind == pa.float64() and abs(value) <= sys.float_info.max


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
