"""The column type of a JSON Schema: it is derived, or refused with the place in the schema."""

import json
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, Field

from model.engine.grammar import Grammars
from model.inputs.processor import Processor
from pipeline.prompts.answer_type import answer_type
from tests.tiny import tiny_checkpoint


class Shape(BaseModel):
    colour: Literal["red", "blue"] | None = None
    size: float = Field(ge=0, lt=100)
    is_round: bool = False


class Clip(BaseModel):
    shapes: list[Shape]
    largest: Shape
    count: int | None = Field(ge=0, lt=100)


SHAPE = pa.struct([("colour", pa.string()), ("size", pa.float64()), ("is_round", pa.bool_())])
CLIP = pa.struct([("shapes", pa.list_(SHAPE)), ("largest", SHAPE), ("count", pa.int64())])


def typed(schema):
    return answer_type(json.dumps(schema))


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string", "maxLength": 4}, pa.string()),
        ({"type": "integer"}, pa.int64()),
        ({"type": "number"}, pa.float64()),
        ({"type": "boolean"}, pa.bool_()),
        ({"enum": ["a", "b", None]}, pa.string()),
        ({"type": "number", "enum": [1, 2.5]}, pa.float64()),
        ({"const": 7}, pa.int64()),
        ({"type": ["null", "integer"]}, pa.int64()),
        ({"anyOf": [{"type": "null"}, {"type": "string"}, {"const": "x"}]}, pa.string()),
        ({"allOf": [{"$ref": "#/$defs/a~1b%20c"}], "$defs": {"a/b c": {"const": 1.5}}},
         pa.float64()),
        ({"type": "array", "items": {"type": "array", "items": {"type": "boolean"}}},
         pa.list_(pa.list_(pa.bool_()))),
        ({"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}},
         pa.struct([("z", pa.string()), ("a", pa.int64())])),
        (Clip.model_json_schema(), CLIP),
    ],
)  # fmt: skip
def test_a_schema_says_the_type_of_a_column(schema, kind):
    assert typed(schema).kind == kind


def test_objects_are_closed_and_nothing_else_changes():
    open_ones = Clip.model_json_schema()

    closed = json.loads(typed(open_ones).schema)

    assert closed.pop("additionalProperties") is False
    assert closed["$defs"]["Shape"].pop("additionalProperties") is False
    assert json.dumps(closed) == json.dumps(open_ones)
    again = typed(open_ones).schema
    assert answer_type(again).schema == again


def nest(depth):
    return {"type": "array", "items": nest(depth - 1)} if depth else {"type": "string"}


def double(times):
    """A schema of references, each of which names the next one twice."""
    two = {
        str(n): {
            "type": "object",
            "properties": {name: {"$ref": f"#/$defs/{n + 1}"} for name in "ab"},
        }
        for n in range(times)
    }
    return {"$ref": "#/$defs/0", "$defs": {**two, str(times): {"type": "string"}}}


TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({}, "# gives no type"),
        (True, "# gives no type"),
        ({"type": "null"}, "# is always null"),
        ({"type": "strin"}, "# has the type 'strin', which JSON Schema does not know"),
        ({"type": ["string", "integer"]}, "# has several types: string, int64"),
        ({"enum": ["a", 1]}, "# has several types: string, int64"),
        ({"enum": "a"}, "# has enum that is not a list"),
        ({"type": "object"}, "# is an object that names no properties"),
        ({"type": "object", "additionalProperties": TEXT}, "# is an object with keys of any name"),
        ({"type": "object", "properties": {"a": TEXT}, "patternProperties": {"b": TEXT}},
         "# is an object with keys of any name"),
        ({"type": "object", "properties": {"a": TEXT, "b/c": {"type": "array"}}},
         "#/properties/b~1c/items gives no type"),
        ({"type": "array", "prefixItems": [TEXT]}, "# is an array with a type for each place"),
        ({"type": "array", "items": [TEXT]}, "# is an array with a type for each place"),
        ({"type": "array", "items": {"anyOf": [TEXT, {"type": "number"}]}},
         "#/items has several types: string, double"),
        ({"allOf": [TEXT, TEXT]}, "# joins several schemas by allOf"),
        ({"type": "string", "anyOf": [TEXT]}, "# has anyOf beside other keys that give its type"),
        ({"oneOf": {}}, "# has oneOf that is not a list"),
        ({"$ref": "other.json"}, "# refers to 'other.json', which is not within the schema"),
        ({"$ref": "#/$defs/a"}, "# refers to '#/$defs/a', which does not exist"),
        ({"type": "object", "properties": {"a": TEXT, "next": {"$ref": "#"}}},
         "#/properties/next/properties/next refers to itself (#)"),
        (nest(41), "/items is beyond 1000 types or 40 levels"),
        (double(12), "is beyond 1000 types or 40 levels"),
    ],
)  # fmt: skip
def test_what_no_column_can_be_is_refused_with_its_place(schema, message):
    with pytest.raises(ValueError, match=r"^no column has the type of its schema: ") as caught:
        typed(schema)

    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_no_json_is_no_schema():
    with pytest.raises(ValueError, match="the schema is not JSON"):
        answer_type("{")


def test_answers_are_values_of_the_type_on_disk_too(tmp_path):
    kind = typed(Clip.model_json_schema())
    shape = {"colour": "red", "size": 2, "is_round": True}
    answers = [
        {"shapes": [shape, {"size": 0.5}], "largest": shape, "count": 1.0},
        {"shapes": [], "largest": {"size": -1e308, "colour": None}, "count": None},
    ]

    column = pa.array([*(kind.read(json.dumps(each)) for each in answers), None], kind.kind)
    pq.write_table(pa.table({"clip": column}), tmp_path / "clips.parquet")
    table = pq.read_table(tmp_path / "clips.parquet")

    assert table.schema.field("clip").type == kind.kind
    rows = table["clip"].to_pylist()
    assert rows[0]["shapes"] == [shape, {"colour": None, "size": 0.5, "is_round": None}]
    assert rows[0]["count"] == 1
    assert rows[1] == {
        "shapes": [],
        "largest": {"size": -1e308, "colour": None, "is_round": None},
        "count": None,
    }
    assert rows[2] is None


@pytest.mark.parametrize(
    ("schema", "text", "message"),
    [
        (TEXT, '"abc', "is not JSON (Unterminated string"),
        (TEXT, "[" * 100_000, "is not JSON"),
        (TEXT, '"\\ud800"', "holds '\\ud800', which is not of type string"),
        (TEXT, "1", "holds 1, which is not of type string"),
        (
            {"type": "integer"},
            str(1 << 63),
            "holds 9223372036854775808, which is not of type int",
        ),
        ({"type": "integer"}, "9" * 5000, "is not JSON (Exceeds the limit"),
        ({"type": "integer"}, "1.5", "holds 1.5, which is not of type int64"),
        ({"type": "integer"}, "true", "holds True, which is not of type int64"),
        ({"type": "integer"}, "1e999", "holds inf, which is not of type int64"),
        ({"type": "number"}, "1e999", "holds inf, which is not of type double"),
        ({"type": "number"}, "1" + "0" * 400, "which is not of type double"),
        ({"type": "number"}, "NaN", "is not JSON (NaN is not JSON)"),
        ({"type": "number"}, "{}", "holds {}, which is not of type double"),
        ({"type": "boolean"}, "0", "holds 0, which is not of type bool"),
        ({"type": "array", "items": TEXT}, '{"a": 1}', "which is not of type list"),
        ({"type": "object", "properties": {"a": TEXT}}, '{"a": "x", "b": 1}', "has a key 'b'"),
        (
            {"type": "object", "properties": {"a": TEXT}},
            '[["a", "x"]]',
            "which is not of type struct",
        ),
    ],
)
def test_what_a_column_cannot_hold_is_told(schema, text, message):
    with pytest.raises(ValueError, match=r"^the answer ") as caught:
        typed(schema).read(text)

    assert message in str(caught.value)
    str(caught.value).encode()  # it can be written itself


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def test_what_the_grammar_of_the_schema_lets_end_is_read(tmp_path):
    """Draw tokens at random within the grammar that the engine uses."""
    tiny_checkpoint(tmp_path)
    processor = Processor.from_checkpoint(tmp_path)
    stops = list(processor.config.stop_token_ids)
    grammars = Grammars(processor.tokenizer, stops)
    kind = typed(Clip.model_json_schema())
    random = np.random.default_rng(0)
    texts = []
    for _ in range(60):
        constraint, tokens = grammars.start(kind.schema), []
        while not constraint.is_complete and len(tokens) < 300:
            bits = np.unpackbits(constraint.allowed_bits(), bitorder="little")
            tokens.append(int(random.choice(bits.nonzero()[0])))
            constraint.advance(tokens[-1])
        if constraint.is_complete:
            texts.append(processor.tokenizer.decode([each for each in tokens if each not in stops]))

    values = pa.array([kind.read(text) for text in texts], kind.kind)

    assert len(texts) > 10
    for value, text in zip(values.to_pylist(), texts, strict=True):
        assert without_nulls(value) == without_nulls(json.loads(text))
