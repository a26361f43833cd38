"""Walks a JSON Schema: its subschemas with their places, and keys that JSON Schema does not know.

A place is written as a JSON pointer, such as `#/properties/people/items`.
"""

import difflib
from collections.abc import Iterator
from typing import Any

Place = tuple[str, ...]  # keys from the root of a schema

# Keys whose value is a schema, a list of schemas, or schemas by name.
_ONE = (
    "items additionalItems additionalProperties contains contentSchema else if not propertyNames "
    "then unevaluatedItems unevaluatedProperties"
).split()
_MANY = "allOf anyOf items oneOf prefixItems".split()
_NAMED = "$defs definitions dependencies dependentSchemas patternProperties properties".split()
# The other keys of drafts 4 to 2020-12, and `discriminator`, which pydantic writes beside unions.
_PLAIN = (
    "$anchor $comment $dynamicAnchor $dynamicRef $id $recursiveAnchor $recursiveRef $ref $schema "
    "$vocabulary const contentEncoding contentMediaType default dependentRequired deprecated "
    "description discriminator enum examples exclusiveMaximum exclusiveMinimum format id "
    "maxContains maxItems maxLength maxProperties maximum minContains minItems minLength "
    "minProperties minimum multipleOf pattern readOnly required title type uniqueItems writeOnly"
).split()
_KNOWN = {*_ONE, *_MANY, *_NAMED, *_PLAIN}


def refuse_unknown_keys(schema: Any) -> None:
    """Refuse a schema with keys that JSON Schema does not have, since they would constrain nothing.

    Keys that begin with `x-` are notes and are taken.

    Raises:
        ValueError: there is such a key; the message names it, its place and the nearest known one.
    """
    for place, node in walk(schema):
        for key in node:
            if key not in _KNOWN and not key.startswith("x-"):
                (nearest,) = difflib.get_close_matches(key, sorted(_KNOWN), n=1, cutoff=0.0)
                raise ValueError(
                    f"{pointer(place)} has the key {key!r}, which JSON Schema does not have and "
                    f"which would constrain nothing; the nearest is {nearest!r}"
                )


def walk(node: Any, place: Place = ()) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield a schema and all its subschemas that are objects, outer ones first."""
    found = [(place, node)]  # not by recursion, since a schema may nest deeper than Python's calls
    while found:
        place, node = found.pop()
        if isinstance(node, dict):
            yield place, node
            inner = [((*place, *steps), child) for steps, child in children(node)]
            found += reversed(inner)


def children(node: dict[str, Any]) -> Iterator[tuple[Place, Any]]:
    """Yield the schemas that stand directly in a schema, with the keys that lead to them."""
    for key, value in node.items():
        if key in _NAMED and isinstance(value, dict):
            yield from (((key, name), child) for name, child in value.items())
        elif key in _MANY and isinstance(value, list):
            yield from (((key, str(number)), child) for number, child in enumerate(value))
        elif key in _ONE:
            yield (key,), value


def pointer(place: Place) -> str:
    """Write a place as a JSON pointer; `#` is the root."""
    return "/".join(("#", *(key.replace("~", "~0").replace("/", "~1") for key in place)))
