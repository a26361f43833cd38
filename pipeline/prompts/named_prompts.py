"""Several questions about each row, over one decoding and one visual prefix.

Each is a part of the row (`pipeline.prompts.fan_in`); only the first of those that show the same
frames holds the pixels, and in the engine they share them: features by image, blocks by prefix.

An answer with a JSON Schema can be a value of the type that the schema says (`answer_type`). What
is no such value, cut short or beyond the type, is null there, and its text stands in `answers`.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from model.engine.sequence import SamplingParams
from model.inputs.prompt import PromptError
from pipeline.prompts.answer_type import AnswerType, answer_type
from pipeline.prompts.fan_in import (
    PART_FIELDS,
    RULES,
    Part,
    Rule,
    extra_fields,
    fan_in,
    first_error,
    first_of,
)
from pipeline.prompts.frame_view import FrameView
from pipeline.schema import (
    MEDIA_FIELDS,
    PART_FIELD,
    PREPARED_FIELDS,
    QUESTION_FIELD,
    RESULT_FIELDS,
    ErrorCode,
    Status,
)

ANSWERS = "answers"  # the column that tells how each question was answered
_TEXT = pa.field("text", pa.large_string())  # of a typed answer that its column does not hold
_OF_LOOK = [f for f in MEDIA_FIELDS if f.name in ("frame_times_s", "num_visual_tokens")]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of every row under one name; its answers fill the column of that name.

    Args:
        name: of the column.
        text: a template with `{column}` where a row's value belongs; {{ and }} are braces.
        sampling: how it is answered.
        look: how the row is shown; None is as the run says. All looks of a row are decoded once.
        over: a column that holds a list of texts: the question is asked for each of them, in the
            place of its name in `text`, and its column is the list of the answers.
        is_typed: the answers are values of the type that the schema of `sampling` says, not texts.

    Raises:
        ValueError: the text is empty, or is no template of the form `{column}`; or the answers are
            to have the type of a schema and there is none, or none that a column can have.
    """

    name: str
    text: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    look: FrameView | None = None
    over: str | None = None
    is_typed: bool = False

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError(f"the prompt {self.name!r} is empty; say what is wanted")
        template_fields(self.text)
        if self.is_typed and self.sampling.schema is None:
            raise ValueError(f"the answers of {self.name!r} have no schema that says their type")
        assert self.output_field  # whose type is checked

    @property
    def answer_type(self) -> AnswerType | None:
        """What its answers are read as; None for text."""
        schema = self.sampling.schema
        return answer_type(schema) if self.is_typed and schema is not None else None

    @property
    def output_field(self) -> pa.Field:
        """The column of its answers."""
        kind = pa.large_string() if self.answer_type is None else self.answer_type.kind
        return pa.field(self.name, kind if self.over is None else pa.list_(kind))

    def asked(self, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The values for `fill`: those of the row, once, or once for each text of its list.

        An empty list, or none, is one text that is null.
        """
        if self.over is None:
            return [row]
        return [{**row, self.over: text} for text in row[self.over] or [None]]


def template_fields(text: str) -> tuple[str, ...]:
    """The columns that a template names, each once.

    Raises:
        ValueError: braces do not match, or a field is more than a name.
    """
    names: dict[str, None] = {}
    try:
        for _, name, form, conversion in string.Formatter().parse(text):
            if name is None:
                continue
            _require_name(name, form, conversion)
            names[name] = None
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no template ({error}); write {{column}} for a value, {{{{ for a brace"
        ) from error
    return tuple(names)


def fields_of(questions: Sequence[Question]) -> tuple[str, ...]:
    """The columns with one value that questions name, each once."""
    names = (n for each in questions for n in template_fields(each.text) if n != each.over)
    return tuple(dict.fromkeys(names))


def lists_of(questions: Sequence[Question]) -> tuple[str, ...]:
    """The columns with lists over which questions go, each once."""
    return tuple(dict.fromkeys(each.over for each in questions if each.over is not None))


def _require_name(name: str, form: str | None, conversion: str | None) -> None:
    if not name or form or conversion or any(mark in name for mark in ".["):
        raise ValueError(f"{{{name}}} is not the name of a column")


def fill(text: str, row: Mapping[str, Any]) -> str:
    """A template with the values of a row.

    Raises:
        PromptError: `bad_prompt` where a value is null.
    """
    values = {name: row[name] for name in template_fields(text)}
    if missing := [name for name, value in values.items() if value is None]:
        raise PromptError("bad_prompt", f"the prompt needs column {missing[0]!r}, which is null")
    return string.Formatter().vformat(text, (), {name: str(v) for name, v in values.items()})


def question_fields(questions: Sequence[Question]) -> list[pa.Field]:
    """The result columns that questions add."""
    own = [each.output_field for each in questions if each.name != "caption"]
    return [*own, answers_field(questions)] if questions else []


def answers_field(questions: Sequence[Question]) -> pa.Field:
    """The column that tells how each question was answered, in their order."""
    parts = [pa.field("question", pa.string()), *PART_FIELDS]
    if any(each.is_typed for each in questions):
        parts.append(_TEXT)
    if any(each.look for each in questions):
        parts += _OF_LOOK
    parts += extra_fields([each.sampling for each in questions])
    return pa.field(ANSWERS, pa.list_(pa.struct(parts)))


def check_names(questions: Sequence[Question]) -> None:
    """Refuse names that are used twice or belong to other columns of the output.

    Raises:
        ValueError: names one.
    """
    taken = {each.name for each in (*RESULT_FIELDS, *PREPARED_FIELDS)}
    seen = taken.union((ANSWERS, PART_FIELD.name, QUESTION_FIELD.name)) - {"caption"}
    for each in questions:
        if each.name in seen:
            raise ValueError(f"a prompt cannot be named {each.name!r}: that column is taken")
        if each.name == "caption" and (each.is_typed or each.over is not None):
            raise ValueError(
                "the answers of `caption` are one text a row; give the prompt another name"
            )
        seen.add(each.name)


def answers_in_rows(table: pa.Table, questions: Sequence[Question]) -> pa.Table:
    """One row for each row of the input, with a column for each question.

    Args:
        table: answered parts, those of the same input row one after the other, by their number.
        questions: in the order of their numbers.
    """
    names = [each.name for each in questions]
    rules = dict(RULES) | {
        "caption": lambda parts: None,
        "error": first_error(lambda part: names[part[QUESTION_FIELD.name]]),
        "num_visual_tokens": first_of("num_visual_tokens"),  # of the first question that has any
    }
    columns: list[tuple[pa.Field, Rule]] = []
    for number, question in enumerate(questions):
        rule = _value_of(number) if question.over is None else _values_of(number)
        if question.name == "caption":
            rules["caption"] = rule  # it is among the result fields
        else:
            columns.append((question.output_field, rule))
    answers = answers_field(questions)
    types = [each.answer_type for each in questions]
    return fan_in(
        table,
        rules,
        [*columns, (answers, _details(names, answers))],
        lambda part: {**part, **_read(part, types[part[QUESTION_FIELD.name]])},
    )


def _read(part: Part, kind: AnswerType | None) -> dict[str, Any]:
    """The `value` of an answer, or its `text` and maybe an error where it is none."""
    text = part["caption"]
    if kind is None or text is None:
        return {"value": text, "text": None}
    if part["finish_reason"] != "stop":  # a number may be JSON without its end
        return {"value": None, "text": text}
    try:
        return {"value": kind.read(text), "text": None}
    except ValueError as error:
        failed = {"status": Status.ERROR.value, "error_code": ErrorCode.SCHEMA_FAILED.value}
        return {"value": None, "text": text, **failed, "error": str(error)}


def _values_of(number: int) -> Rule:
    return lambda parts: [each["value"] for each in parts if each[QUESTION_FIELD.name] == number]


def _value_of(number: int) -> Rule:
    return lambda parts: _values_of(number)(parts)[0]


def _details(names: Sequence[str], answers: pa.Field) -> Rule:
    wanted = [field.name for field in answers.type.value_type][1:]

    def rule(parts: Sequence[Part]) -> list[dict[str, Any]]:
        return [
            {"question": names[part[QUESTION_FIELD.name]]} | {name: part[name] for name in wanted}
            for part in parts
        ]

    return rule
