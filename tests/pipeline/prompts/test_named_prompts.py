"""Several prompts a row: their templates, and their answers in one row."""

from dataclasses import replace

import pyarrow as pa
import pytest

from model.engine.sequence import SamplingParams
from pipeline.prompts.frame_view import FrameView
from pipeline.prompts.named_answers import answers_in_rows, named_answer_fields
from pipeline.prompts.named_prompts import NamedPrompt, check_names
from pipeline.schema import CHOICE_LOGPROBS_FIELD, RESULT_FIELDS, SAMPLES_FIELD


def test_a_text_that_is_no_template_is_refused():
    with pytest.raises(ValueError, match="is not a template"):
        NamedPrompt(name="q", text="{a")


@pytest.mark.parametrize("name", ["status", "row_id", "answers", "prompt_part", "seed", "twice"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(ValueError, match=f"cannot be named '{name}'"):
        check_names([NamedPrompt(name="twice", text="?"), NamedPrompt(name=name, text="?")])


def answered(*rows):
    """Make a table as the generate stage leaves it."""
    numbers = [pa.field(name, pa.int32()) for name in ("prompt_part", "prompt_question", "kept")]
    fields = [*RESULT_FIELDS, *numbers, SAMPLES_FIELD, CHOICE_LOGPROBS_FIELD]
    return pa.Table.from_pylist(list(rows), pa.schema(fields))


def ok(row_id, number, text, **more):
    return {
        "row_id": row_id, "prompt_part": number, "prompt_question": number, "kept": 7,
        "caption": text, "status": "ok",
        "finish_reason": "stop", "num_prompt_tokens": 10, "num_generated_tokens": 2,
        "frame_times_s": [0.5], "mean_logprob": -1.0, "min_logprob": -2.0,
    } | more  # fmt: skip


def test_answers_become_columns_of_one_row():
    prompts = (NamedPrompt(name="mood", text="?"), NamedPrompt(name="caption", text="!"))
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

    merged = answers_in_rows(table, prompts)

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
    names = [field.name for field in named_answer_fields(prompts)]
    assert merged.column_names[-1] == "answers"
    assert set(names) <= set(merged.column_names)
    assert answers_in_rows(table.slice(0, 0), prompts).num_rows == 0


def test_a_prompt_over_a_list_gives_a_list():
    """Rows have lists of their own lengths; `answers` tells what each answer cost and showed."""
    drawn = SamplingParams(temperature=1.0, n=2, choices=("A", "B"))
    prompts = (
        NamedPrompt(name="each", text="{ask}", over="ask", sampling=drawn, view=FrameView()),
        NamedPrompt(name="once", text="?"),
    )
    of_each = {"prompt_question": 0, "samples": ["x", "y"], "choice_logprobs": [-1.0, -2.0]}
    table = answered(
        ok("a", 0, "a0", **of_each, num_visual_tokens=4),
        ok("a", 1, "a1", **of_each),
        ok("a", 2, "a?", prompt_question=1),
        ok("b", 0, "b0", **of_each),
        ok("b", 1, "b?", prompt_question=1),
    )

    rows = answers_in_rows(table, prompts).to_pylist()

    assert [(row["each"], row["once"]) for row in rows] == [(["a0", "a1"], "a?"), (["b0"], "b?")]
    details = rows[0]["answers"]
    assert [answer["question"] for answer in details] == ["each", "each", "once"]
    assert details[0]["samples"] == ["x", "y"]
    assert details[0]["choice_logprobs"] == [-1.0, -2.0]
    assert details[2]["choice_logprobs"] is None
    assert (details[0]["num_visual_tokens"], details[0]["frame_times_s"]) == (4, [0.5])
    assert "samples" not in rows[0]
    assert prompts[0].values_of({"ask": ["x", "y"]}) == [{"ask": "x"}, {"ask": "y"}]
    for nothing in ([], None):
        assert prompts[0].values_of({"ask": nothing}) == [{"ask": None}]


def test_a_typed_answer_is_a_value_or_its_text_is_kept():
    schema = '{"type": "array", "items": {"type": "integer"}}'
    typed = SamplingParams(schema=schema)
    prompts = (
        NamedPrompt(name="each", text="{ask}", over="ask", sampling=typed, is_typed=True),
        NamedPrompt(
            name="once", text="?", sampling=replace(typed, n=2, temperature=1.0), is_typed=True
        ),
        NamedPrompt(name="text", text="?", sampling=typed),
    )
    once, text = {"prompt_question": 1}, {"prompt_question": 2}
    cut = {"finish_reason": "length", "status": "truncated"}
    failed = {"status": "error", "error_code": "engine_error", "error": "?", "finish_reason": None}
    table = answered(
        ok("a", 0, "[1, 2]", prompt_question=0),
        ok("a", 1, "[]", prompt_question=0, status="damaged"),
        ok("a", 2, "[3]", **once, samples=["[3]", "[4]"]),
        ok("a", 3, "[5]", **text),
        ok("b", 0, "[6]", prompt_question=0, **cut),  # whole by chance, but who knows
        ok("b", 1, "[99999999999999999999]", prompt_question=0),
        ok("b", 2, None, **once, **failed),
        ok("b", 3, "[7", **text, **cut),
    )

    merged = answers_in_rows(table, prompts)
    a, b = merged.to_pylist()

    assert merged.schema.field("each").type == pa.list_(pa.list_(pa.int64()))
    assert (a["each"], a["once"], a["text"], a["status"]) == ([[1, 2], []], [3], "[5]", "damaged")
    assert [answer["text"] for answer in a["answers"]] == [None] * 4
    assert a["answers"][2]["samples"] == ["[3]", "[4]"]
    assert (b["each"], b["once"], b["text"]) == ([None, None], None, "[7")
    assert [(answer["status"], answer["text"]) for answer in b["answers"]] == [
        ("truncated", "[6]"),
        ("error", "[99999999999999999999]"),
        ("error", None),
        ("truncated", None),
    ]
    assert (b["status"], b["error_code"]) == ("error", "schema_failed")
    assert b["error"].startswith("each: the answer holds 99999999999999999999")
    assert answers_in_rows(table.slice(0, 0), prompts).schema == merged.schema


def test_what_is_typed_has_a_schema_that_says_a_type():
    with pytest.raises(ValueError, match="the answers of 'q' have no schema"):
        NamedPrompt(name="q", text="?", is_typed=True)
    with pytest.raises(ValueError, match="no column has the type of its schema: # is an object"):
        NamedPrompt(
            name="q", text="?", sampling=SamplingParams(schema='{"type": "object"}'), is_typed=True
        )


def test_a_caption_is_one_text():
    typed = SamplingParams(schema='{"type": "boolean"}')
    for wrong in (
        NamedPrompt(name="caption", text="{x}", over="x"),
        NamedPrompt(name="caption", text="?", sampling=typed, is_typed=True),
    ):
        with pytest.raises(ValueError, match="`caption` holds one text a row"):
            check_names([wrong])
