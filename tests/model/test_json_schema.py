"""Which keys a JSON Schema may have, and where they stand."""

import json

import pytest
from pydantic import BaseModel, Field

from model.json_schema import pointer, refuse_unknown_keys, walk


class Cat(BaseModel):
    kind: str = Field("cat", pattern="cat", examples=["cat"], deprecated=True)


class Clip(BaseModel):
    """A clip."""

    model_config = {"json_schema_extra": {"x-order": 1}}
    pets: list[Cat] = Field(min_length=1, description="seen")
    by_name: dict[str, int | None] = {}


def test_subschemas_are_found_wherever_they_may_stand():
    schema = {
        "properties": {"a/b": {"items": {"const": 1}}, "type": {"anyOf": [{}, True, {"enum": []}]}},
        "$defs": {"x": {"additionalProperties": {"not": {}}}},
        "default": {"properties": {"no": {}}},
        "enum": [{"items": {}}],
    }

    assert [pointer(place) for place, _ in walk(schema)] == [
        "#",
        "#/properties/a~1b",
        "#/properties/a~1b/items",
        "#/properties/type",
        "#/properties/type/anyOf/0",
        "#/properties/type/anyOf/2",
        "#/$defs/x",
        "#/$defs/x/additionalProperties",
        "#/$defs/x/additionalProperties/not",
    ]


def test_what_pydantic_writes_and_names_of_any_kind_are_taken():
    refuse_unknown_keys(Clip.model_json_schema())
    refuse_unknown_keys({"properties": {"propertys": {}}, "default": {"oops": 1}, "x-note": 1})


def test_a_key_is_refused_however_deep_it_stands():
    schema = {"typ": "string"}
    for _ in range(5000):
        schema = {"items": schema}

    with pytest.raises(ValueError, match=r"has the key 'typ', .*the nearest is 'type'"):
        refuse_unknown_keys(schema)
    with pytest.raises(ValueError, match=r"^# has the key 'nullable'"):
        refuse_unknown_keys(json.loads('{"type": "string", "nullable": true}'))
