"""`AnswerType`: the Arrow type of the answers that follow a JSON Schema, and how to read them.

    object -> struct     string -> string     integer -> int64      number -> float64
    array  -> list       boolean -> bool      a key left out, or null beside a type -> null

Types nest. A schema that no column type can express (several types, keys without names, ...) is
refused, and the message names the place in the schema. No value silently becomes text or is lost.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from model.json_schema import Place, pointer

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
_JOINS = ("$ref", "allOf", "anyOf", "oneOf")  # keys that give the type through other schemas
_SAYS = ("type", "enum", "const", "properties", "items", "prefixItems")  # that give it here
_MAX_TYPES = 1000  # a short schema can describe very many, if each reference is made twice
_MAX_DEPTH = 40  # Arrow's files nest at most 64 deep


@dataclass(frozen=True)
class AnswerType:
    """The type of a column of answers."""

    kind: pa.DataType
    schema: str  # the given JSON Schema, whose objects now allow only the keys that they name

    def read(self, text: str) -> Any:
        """Read the value of a whole answer, for an array of `kind`.

        Raises:
            ValueError: the text is not JSON of this type, or the type cannot hold a value in it.
        """
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the answer is not JSON ({error})") from error
        return _as(value, self.kind)


@lru_cache(maxsize=64)
def answer_type(schema: str) -> AnswerType:
    """Derive the type of the answers that follow a JSON Schema, given as text.

    Objects that do not set `additionalProperties` get it set to false, because a column has no
    place for keys that it does not know.

    Raises:
        ValueError: no column can have that type; the message names the place in the schema.
    """
    try:
        root = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the schema is not JSON: {error}") from error
    kind = _Derivation(root).column(root, (), ())
    return AnswerType(kind, json.dumps(root))


class _Derivation:
    """One walk over a schema, which also sets `additionalProperties` of the objects on its way."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._num_types = 0

    def column(self, node: Any, place: Place, refs: Sequence[str]) -> pa.DataType:
        """Derive the type of the values that follow a node, which is at a place in the schema.

        `refs` are the references that were followed on the way, to notice a circle.
        """
        kind = self._kind(node, place, refs)
        if kind is None:
            raise _refusal(place, "is always null")
        return kind

    def _kind(self, node: Any, place: Place, refs: Sequence[str]) -> pa.DataType | None:
        """The type of a node as for `column`, or None if its values are always null."""
        self._num_types += 1
        if self._num_types > _MAX_TYPES or len(place) > _MAX_DEPTH:
            raise _refusal(place, f"is beyond {_MAX_TYPES} types or {_MAX_DEPTH} levels")
        if not isinstance(node, dict):
            raise _refusal(place, "gives no type")
        if joins := [key for key in _JOINS if key in node]:
            if len(joins) > 1 or any(key in node for key in _SAYS):
                raise _refusal(place, f"has {joins[0]} beside other keys that give its type")
            return self._joined(joins[0], node[joins[0]], place, refs)
        if "type" in node:
            names = node["type"] if isinstance(node["type"], list) else [node["type"]]
        elif "enum" in node:
            names = [_OF_PYTHON[type(value)] for value in _list(node["enum"], "enum", place)]
        elif "const" in node:
            names = [_OF_PYTHON[type(node["const"])]]
        else:
            raise _refusal(place, "gives no type")
        return _one([self._named(name, node, place, refs) for name in names], place)

    def _joined(
        self, key: str, value: Any, place: Place, refs: Sequence[str]
    ) -> pa.DataType | None:
        if key == "$ref":
            if value in refs:
                raise _refusal(place, f"refers to itself ({value})")
            return self._kind(self._at(value, place), place, (*refs, value))
        if key == "allOf" and isinstance(value, list) and len(value) > 1:
            raise _refusal(place, "joins several schemas by allOf")
        return _one([self._kind(each, place, refs) for each in _list(value, key, place)], place)

    def _at(self, ref: Any, place: Place) -> Any:
        """Find the node that a reference within the schema names."""
        node = self._root
        pointer = unquote(ref) if isinstance(ref, str) else ""
        if pointer != "#" and not pointer.startswith("#/"):
            raise _refusal(place, f"refers to {ref!r}, which is not within the schema")
        for step in pointer.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, dict) or key not in node:
                raise _refusal(place, f"refers to {ref!r}, which does not exist")
            node = node[key]
        return node

    def _named(
        self, name: Any, node: dict[str, Any], place: Place, refs: Sequence[str]
    ) -> pa.DataType | None:
        """The type that a name in a node's `type` stands for."""
        if name == "object":
            return self._struct(node, place, refs)
        if name == "array":
            if "prefixItems" in node or isinstance(node.get("items"), list):
                raise _refusal(place, "is an array with a type for each place")
            return pa.list_(self.column(node.get("items"), (*place, "items"), refs))
        if not isinstance(name, str) or name not in _SCALARS:
            raise _refusal(place, f"has the type {name!r}, which JSON Schema does not know")
        return _SCALARS[name]

    def _struct(self, node: dict[str, Any], place: Place, refs: Sequence[str]) -> pa.DataType:
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


def _list(value: Any, key: str, place: Place) -> list[Any]:
    if not isinstance(value, list):
        raise _refusal(place, f"has {key} that is not a list")
    return value


def _one(kinds: Sequence[pa.DataType | None], place: Place) -> pa.DataType | None:
    """The one type among several kinds, besides null."""
    distinct = [kind for kind in dict.fromkeys(kinds) if kind is not None]
    if len(distinct) > 1:
        raise _refusal(place, f"has several types: {', '.join(map(str, distinct)):.200}")
    return distinct[0] if distinct else None


def _refusal(place: Place, reason: str) -> ValueError:
    return ValueError(f"no column has the type of its schema: {pointer(place)} {reason}")


def _as(value: Any, kind: pa.DataType) -> Any:
    """Convert a JSON value to a value of the type."""
    if value is None:
        return None
    if pa.types.is_struct(kind) and isinstance(value, dict):
        fields = {field.name: field.type for field in kind}
        if unknown := value.keys() - fields.keys():
            raise ValueError(
                f"the answer has a key {min(unknown)!r}, which the schema does not have"
            )
        return {name: _as(value.get(name), field) for name, field in fields.items()}
    if pa.types.is_list(kind) and isinstance(value, list):
        return [_as(each, kind.value_type) for each in value]
    if _holds(kind, value):
        return {pa.int64(): int, pa.float64(): float}.get(kind, type(value))(value)
    raise ValueError(f"the answer holds {value!r:.60}, which is not of type {kind}")


def _holds(kind: pa.DataType, value: Any) -> bool:
    """Whether a string, number or boolean is a value of the type."""
    if isinstance(value, bool):
        return kind == pa.bool_()
    if isinstance(value, str):  # JSON allows a lone surrogate, "\ud800"; Arrow does not
        return kind == pa.string() and not any("\ud800" <= each <= "\udfff" for each in value)
    if not isinstance(value, int | float):
        return False
    if kind == pa.int64():
        return -(1 << 63) <= value < 1 << 63 and value == int(value)
    return kind == pa.float64() and abs(value) <= sys.float_info.max


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
