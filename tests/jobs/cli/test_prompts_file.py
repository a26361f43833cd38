"""Questions from a file: what they set, what they take from the command, what is refused."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from jobs.cli.prompts_file import read_named_prompts
from model.engine.sequence import SamplingParams

COMMAND = SamplingParams(max_tokens=99, temperature=0.5)


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "prompts.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_question_is_a_text_or_a_mapping_with_settings_of_its_own(written, tmp_path):
    (tmp_path / "safe.json").write_text('{"type": "boolean"}')
    path = written(
        "mood: What is the mood?\n"
        "safety:\n  text: 'Is {title} safe?'\n  temperature: 0\n  schema: safe.json\n"
        "tags:\n  text: Tags?\n  max-tokens: 8\n  stop: ['.']\n"
        "kind:\n  text: Which?\n  schema: {name: k, strict: true, schema: {enum: [a, b]}}\n"
    )

    mood, safety, tags, kind = read_named_prompts(path, COMMAND)

    assert (mood.name, mood.text, mood.sampling) == ("mood", "What is the mood?", COMMAND)
    assert (safety.sampling.temperature, safety.sampling.max_tokens) == (0, 99)
    assert json.loads(safety.sampling.schema or "") == {"type": "boolean"}
    assert (tags.sampling.max_tokens, tags.sampling.stop) == (8, (".",))
    assert json.loads(kind.sampling.schema or "") == {"enum": ["a", "b"]}


def test_answers_with_a_schema_have_its_type_unless_they_are_to_be_text(written):
    schema = "schema: {type: object, properties: {b: {type: boolean}, a: {const: 1}}}"
    path = written(
        f"one: {{text: x, {schema}}}\n"
        f"two: {{text: x, {schema}, as: typed}}\n"
        f"three: {{text: x, {schema}, as: json}}\n"
        f"caption: {{text: x, {schema}}}\n"
    )

    typed, typed_too, *texts = read_named_prompts(path, COMMAND)

    kind = pa.struct([("b", pa.bool_()), ("a", pa.int64())])
    assert [each.output_field.type for each in (typed, typed_too)] == [kind] * 2
    assert [each.output_field.type for each in texts] == [pa.large_string()] * 2
    assert json.loads(typed.sampling.schema or "")["additionalProperties"] is False
    assert "additionalProperties" not in (texts[0].sampling.schema or "")
    inherited = replace(COMMAND, schema='{"type": "number"}')
    (asked,) = read_named_prompts(written("mood: How good?"), inherited)
    assert asked.output_field == pa.field("mood", pa.float64())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "holds no prompt"),
        ("- a", "must be a mapping"),
        ("a: b: c", "line 1: not valid YAML"),
        ("a: ''", "a: the prompt 'a' is empty"),
        ("a: '{x'", "a: '{x' is not a template"),
        ("a: 3", "a: it must be a text, or a mapping with `text`"),
        ("a: {prompt: x}", "a: it must be a text, or a mapping with `text`"),
        ("a: {text: x, temprature: 1}", "there is no key 'temprature'; the nearest is 'temp"),
        ("a: {text: x, temperature: hot}", "a: temperature must be a number, got 'hot'"),
        ("a: {text: x, temperature: -1}", "a: temperature must be between 0 and 10"),
        ("a: {text: x, max-tokens: true}", "a: max-tokens must be a number, got True"),
        ("a: {text: x, stop: [1]}", "a: stop must be text or a list of texts"),
        ("a: {text: x, schema: no.json}", "no.json cannot be read"),
        ("a: {text: x, schema: 3}", "a: schema must be a file or a mapping"),
        (
            "a: {text: x, schema: {type: object, properties: {b: {type: array}}}}",
            "a: no column has the type of its schema: #/properties/b/items gives no type; "
            "`as: json` keeps its answers as text",
        ),
        ("a: {text: x, schema: {const: 2020-01-01}}", "a: schema is not JSON: Object of type date"),
        ("a: {text: x, as: json}", "a: `as` needs a schema, and this prompt has none"),
        ("a: {text: x, schema: {const: 1}, as: text}", "a: as must be typed or json, got 'text'"),
        ("a: x\na: y", "line 2: 'a' is given twice"),
        ("yes: x", "True: the name of a prompt must be text; quote it"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(written, text, message):
    path = written(text)

    with pytest.raises(ValueError, match=r"^--prompts ") as caught:
        read_named_prompts(path, COMMAND)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
