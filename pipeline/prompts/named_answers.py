"""The answers to a row's named prompts, as one row with a column for each prompt.

A typed answer becomes a value of its type. Where an answer is not such a value, because it was cut
short or the type cannot hold it, the value is null and `answers` keeps the text.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.prompts.answer_type import AnswerType
from pipeline.prompts.fan_in import (
    DETAIL_FIELDS,
    RULES,
    PromptResult,
    Rule,
    extra_fields,
    fan_in,
    first_error,
    first_of,
    null,
)
from pipeline.prompts.named_prompts import ANSWERS, NamedPrompt
from pipeline.schema import MEDIA_FIELDS, NAMED_PROMPT_FIELD, ErrorCode, Status

_NUMBER = NAMED_PROMPT_FIELD.name
_TEXT = pa.field("text", pa.large_string())  # of a typed answer that is not a value of its type
_VIEW_FIELDS = [f for f in MEDIA_FIELDS if f.name in ("frame_times_s", "num_visual_tokens")]


def named_answer_fields(prompts: Sequence[NamedPrompt]) -> list[pa.Field]:
    """The result columns that named prompts add; none without prompts."""
    own = [each.output_field for each in prompts if each.name != "caption"]
    return [*own, _answers_field(prompts)] if prompts else []


def answers_in_rows(table: pa.Table, prompts: Sequence[NamedPrompt]) -> pa.Table:
    """Join the answered prompts of each row, as `fan_in` does, with `named_answer_fields`."""
    names = [each.name for each in prompts]
    rules = dict(RULES) | {
        "caption": null,
        "error": first_error(lambda result: names[result[_NUMBER]]),
        "num_visual_tokens": first_of("num_visual_tokens"),
    }
    columns: list[tuple[pa.Field, Rule]] = []
    for number, prompt in enumerate(prompts):
        rule = _value_of(number) if prompt.over is None else _values_of(number)
        if prompt.name == "caption":
            rules["caption"] = rule  # `caption` is a result column already
        else:
            columns.append((prompt.output_field, rule))
    answers = _answers_field(prompts)
    types = [each.answer_type for each in prompts]
    return fan_in(
        table,
        rules,
        [*columns, (answers, _details(names, answers))],
        lambda result: {**result, **_read(result, types[result[_NUMBER]])},
    )


def _answers_field(prompts: Sequence[NamedPrompt]) -> pa.Field:
    """The column that tells how each prompt was answered, in the order of the prompts."""
    details = [pa.field("question", pa.string()), *DETAIL_FIELDS]
    if any(each.is_typed for each in prompts):
        details.append(_TEXT)
    if any(each.view for each in prompts):
        details += _VIEW_FIELDS
    details += extra_fields([each.sampling for each in prompts])
    return pa.field(ANSWERS, pa.list_(pa.struct(details)))


def _read(result: PromptResult, kind: AnswerType | None) -> dict[str, Any]:
    """Read the `value` of an answer; or keep its `text`, with an error if it is not of the type."""
    text = result["caption"]
    if kind is None or text is None:
        return {"value": text, "text": None}
    if result["finish_reason"] != "stop":
        # A cut answer may still be valid JSON by chance: 12 of 123.
        return {"value": None, "text": text}
    try:
        return {"value": kind.read(text), "text": None}
    except ValueError as error:
        failed = {"status": Status.ERROR.value, "error_code": ErrorCode.SCHEMA_FAILED.value}
        return {"value": None, "text": text, **failed, "error": str(error)}


def _values_of(number: int) -> Rule:
    return lambda results: [each["value"] for each in results if each[_NUMBER] == number]


def _value_of(number: int) -> Rule:
    return lambda results: _values_of(number)(results)[0]


def _details(names: Sequence[str], answers: pa.Field) -> Rule:
    """The rule for the column `answers`."""
    wanted = [field.name for field in answers.type.value_type][1:]

    def rule(results: Sequence[PromptResult]) -> list[dict[str, Any]]:
        return [
            {"question": names[result[_NUMBER]]} | {name: result[name] for name in wanted}
            for result in results
        ]

    return rule
