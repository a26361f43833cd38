"""Templates of prompts take the values of columns of any name."""

import json

import pytest

from model.inputs.prompt import PromptError
from pipeline.prompts.template import fill, only_field, template_fields


@pytest.mark.parametrize(
    ("text", "fields", "filled"),
    [
        ("plain", (), "plain"),
        ("Is {title} from {year}? {title}!", ("title", "year"), "Is A {x} from 1999? A {x}!"),
        ('{{"json": {year}}}', ("year",), '{"json": 1999}'),
        ("{{{year}}}", ("year",), "{1999}"),
        ("{two words}", ("two words",), "yes"),
        ("{a\nb}", ("a\nb",), "line"),
    ],
)
def test_a_template_takes_the_values_of_a_row(text, fields, filled):
    row = {"title": "A {x}", "year": 1999, "two words": "yes", "a\nb": "line"}

    assert template_fields(text) == fields
    assert fill(text, row) == filled


PLAIN = [
    "episode.index",
    "task, goal",
    "a[0]",
    "0.real",
    "a!r",
    "a:>9",
    " a ",
    "\u00e9",
    'say "hi"',
]
QUOTED = ["a}b", "{", "}}", '"x"', '{"a": 1}', "back\\slash", ""]


@pytest.mark.parametrize("name", [*PLAIN, *QUOTED])
def test_a_column_of_any_name_can_be_written(name):
    text = f"<{{{json.dumps(name)}}}>"
    assert template_fields(text) == (name,)
    assert fill(text, {name: 7}) == "<7>"
    assert only_field(text[1:-1]) == name
    if name in PLAIN:
        assert fill(f"{{{{{{{name}}}}}}}", {name: 7}) == "{7}"


@pytest.mark.parametrize("text", ["", "x", "{a}{a}", "{a} ", "{{"])
def test_a_template_of_more_than_a_field_is_no_column(text):
    assert only_field(text) is None


@pytest.mark.parametrize(
    "text", ["{", "}", "{}", "{a", "a}", "{a{b}}", '{"a": 1}', '{"a}', '{"a" }', '{"\\x"}']
)
def test_what_is_no_template_is_refused(text):
    with pytest.raises(ValueError, match="is not a template"):
        template_fields(text)


def test_a_null_value_is_the_rows_error():
    with pytest.raises(PromptError, match="needs column 'title', which is null"):
        fill("{title}", {"title": None})
