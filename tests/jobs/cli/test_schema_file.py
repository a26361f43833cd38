import json

import pytest

from jobs.cli.schema_file import read_schema

MODEL = """
from __future__ import annotations

import dataclasses
from typing import Literal
from pydantic import BaseModel, Field

@dataclasses.dataclass
class Place:
    x: int

class Inner(BaseModel):
    colour: Literal["red", "blue"]

class Clip(BaseModel):
    shapes: list[Inner] = Field(max_length=3)
    count: int
    place: Place

number = 5
"""


def test_a_json_file_is_taken_with_its_order(tmp_path):
    text = '{"type": "object", "properties": {"z": {"type": "null"}, "a": {"const": "\\u00e9"}}}'
    (tmp_path / "schema.json").write_text(text)
    assert read_schema(str(tmp_path / "schema.json")) == text


SCHEMA = {"type": "object", "properties": {"schema": {"type": "string"}}}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"name": "clip", "strict": True, "schema": SCHEMA}, SCHEMA),
        ({"schema": SCHEMA}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}, SCHEMA),
        ({"type": "json_schema", "name": "c", "description": "d", "schema": SCHEMA}, SCHEMA),
        pytest.param(SCHEMA, SCHEMA, id="a property with the name of the wrapper's key"),
        pytest.param(
            {"schema": SCHEMA, "type": "object"},
            {"schema": SCHEMA, "type": "object"},
            id="a schema with a key too many is left to the check of keys",
        ),
    ],
)
def test_a_schema_is_taken_out_of_its_wrapper(tmp_path, written, expected):
    (tmp_path / "schema.json").write_text(json.dumps(written))

    assert json.loads(read_schema(str(tmp_path / "schema.json"))) == expected


def test_a_pydantic_model_is_its_schema(tmp_path):
    (tmp_path / "my models.py").write_text(MODEL)
    schema = json.loads(read_schema(f"{tmp_path}/my models.py:Clip"))
    assert list(schema["properties"]) == ["shapes", "count", "place"]
    assert schema["$defs"]["Inner"]["properties"]["colour"]["enum"] == ["red", "blue"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.json", "cannot be read .*JSON file, or file.py:Model"),
        ("broken.json", "broken.json is not JSON: Expecting"),
        ("none.py:Clip", "there is no Python file"),
        ("models.py:Missing", "'Missing' in .*models.py is None, not a pydantic model"),
        ("models.py:number", "'number' in .*models.py is 5, not a pydantic model"),
        ("fails.py:Clip", "fails.py fails: ZeroDivisionError: division by zero"),
        ("models.py:", "'' in .*models.py is None, not a pydantic model"),
    ],
)
def test_what_is_no_schema_is_refused(tmp_path, name, message):
    (tmp_path / "models.py").write_text(MODEL)
    (tmp_path / "fails.py").write_text("1 / 0")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=message):
        read_schema(str(tmp_path / name))
