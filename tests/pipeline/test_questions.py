"""Several questions a row: templates, and one row in the end."""

import pyarrow as pa
import pytest

from model.prompt import PromptError
from pipeline.questions import (
    ANSWERS_FIELD,
    Question,
    check_names,
    fan_in,
    fill,
    question_fields,
    template_fields,
)
from pipeline.schema import RESULT_FIELDS


@pytest.mark.parametrize(
    ("text", "fields", "filled"),
    [
        ("plain", (), "plain"),
        ("Is {title} from {year}? {title}!", ("title", "year"), "Is A {x} from 1999? A {x}!"),
        ('{{"json": {year}}}', ("year",), '{"json": 1999}'),
        ("{two words}", ("two words",), "yes"),
    ],
)
def test_a_template_takes_the_values_of_a_row(text, fields, filled):
    row = {"title": "A {x}", "year": 1999, "two words": "yes"}

    assert template_fields(text) == fields
    assert fill(text, row) == filled


@pytest.mark.parametrize("text", ["{", "}", "{}", "{0.real}", "{a[0]}", "{a!r}", "{a:>9}", "{a"])
def test_what_is_no_template_is_refused(text):
    with pytest.raises(ValueError, match="is no template"):
        Question(name="q", text=text)


@pytest.mark.parametrize("name", ["status", "row_id", "answers", "question", "seed", "twice"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(ValueError, match=f"cannot be named '{name}'"):
        check_names([Question(name="twice", text="?"), Question(name=name, text="?")])


def test_a_null_value_is_the_rows_error():
    with pytest.raises(PromptError, match="needs column 'title', which is null"):
        fill("{title}", {"title": None})


def answered(*rows):
    """A table as the generate stage leaves it."""
    fields = [*RESULT_FIELDS, pa.field("kept", pa.int64()), pa.field("question", pa.int32())]
    return pa.Table.from_pylist(list(rows), pa.schema(fields))


def ok(row_id, number, text, **more):
    return {
        "row_id": row_id, "question": number, "kept": 7, "caption": text, "status": "ok",
        "finish_reason": "stop", "num_prompt_tokens": 10, "num_generated_tokens": 2,
        "frame_times_s": [0.5], "mean_logprob": -1.0, "min_logprob": -2.0,
    } | more  # fmt: skip


def test_answers_become_columns_of_one_row():
    questions = (Question(name="mood", text="?"), Question(name="caption", text="!"))
    failed = {"caption": None, "status": "error", "error_code": "bad_prompt", "error": "null"}
    table = answered(
        ok("a", 0, "happy"),
        ok("a", 1, "a dog", num_prompt_tokens=12),
        ok("b", 0, "sad", status="truncated"),
        ok("b", 1, None, **failed, num_prompt_tokens=None, num_generated_tokens=None),
        ok("c", 0, None, **failed),
        ok("c", 1, None, **failed),
        ok("d", 0, "x", status="truncated"),
        ok("d", 1, "y", status="damaged", num_visual_tokens=6),
    )

    merged = fan_in(table, questions)

    rows = merged.to_pylist()
    assert [row["row_id"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["mood"] for row in rows] == ["happy", "sad", None, "x"]
    assert [row["caption"] for row in rows] == ["a dog", None, None, "y"]
    assert [row["status"] for row in rows] == ["ok", "error", "error", "truncated"]
    assert [row["error"] for row in rows] == [None, "caption: null", "null", None]
    assert rows[1]["error_code"] == "bad_prompt"
    assert (rows[0]["num_prompt_tokens"], rows[0]["num_generated_tokens"]) == (22, 4)
    assert rows[1]["num_prompt_tokens"] == 10
    assert rows[0]["kept"] == 7
    assert rows[3]["num_visual_tokens"] == 6
    assert rows[0]["frame_times_s"] == [0.5]
    assert [answer["question"] for answer in rows[0]["answers"]] == ["mood", "caption"]
    assert rows[1]["answers"][1]["error"] == "null"
    assert rows[0]["answers"][0]["mean_logprob"] == -1.0
    names = [field.name for field in question_fields(questions)]
    assert merged.column_names[-1] == ANSWERS_FIELD.name
    assert set(names) <= set(merged.column_names)
    assert fan_in(table.slice(0, 0), questions).num_rows == 0
