"""Several questions about each row, over one decoding and one visual prefix.

Between prepare and generate a row of Q questions is Q rows of the table, one after the other, with
`question` as their number; only the first of them holds the pixels. The generate stage answers them
like any rows, and in the engine they share the frames: features by image, blocks by prefix.
`fan_in` then makes one row of them again:

    row_id question | answer          row_id | mood  | answers
    a      0        | happy     -->   a      | happy | [{question: mood, status: ok, ...}, ...]
    a      1        | ...
"""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from model.prompt import PromptError
from model.sequence import SamplingParams
from pipeline.schema import PREPARED_FIELDS, RESULT_FIELDS, Status

QUESTION_FIELD = pa.field("question", pa.int32())

_OF_ANSWER = (
    "status", "error_code", "error", "finish_reason", "num_prompt_tokens", "num_generated_tokens",
    "mean_logprob", "min_logprob", "reasoning",
)  # fmt: skip
_RESULT_TYPES = {each.name: each.type for each in RESULT_FIELDS}

ANSWERS_FIELD = pa.field(
    "answers",
    pa.list_(
        pa.struct(
            [("question", pa.string()), *((name, _RESULT_TYPES[name]) for name in _OF_ANSWER)]
        )
    ),
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of every row under one name; its answers fill the column of that name.

    Raises:
        ValueError: the text is empty, or is no template of the form `{column}`.
    """

    name: str
    text: str  # with {column} where a row's value belongs; {{ and }} are braces
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError(f"the prompt {self.name!r} is empty; say what is wanted")
        template_fields(self.text)

    @property
    def output_field(self) -> pa.Field:
        """The column of its answers."""
        return pa.field(self.name, pa.large_string())


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
    """The columns that questions name, each once."""
    return tuple(dict.fromkeys(name for each in questions for name in template_fields(each.text)))


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
    return [*own, ANSWERS_FIELD] if questions else []


def check_names(questions: Sequence[Question]) -> None:
    """Refuse names that are used twice or belong to other columns of the output.

    Raises:
        ValueError: names one.
    """
    taken = {each.name for each in (*RESULT_FIELDS, *PREPARED_FIELDS, ANSWERS_FIELD)}
    seen = taken.union((QUESTION_FIELD.name,)) - {"caption"}
    for each in questions:
        if each.name in seen:
            raise ValueError(f"a prompt cannot be named {each.name!r}: that column is taken")
        seen.add(each.name)


def fan_in(table: pa.Table, questions: Sequence[Question]) -> pa.Table:
    """One row for each row of the input, with a column for each question.

    Args:
        table: answered rows, those of the same input row one after the other, by `question`.
        questions: in the order of their numbers.
    """
    num_questions = len(questions)
    assert table.num_rows % num_questions == 0
    firsts = range(0, table.num_rows, num_questions)
    answers = table.select(["question", "caption", "num_visual_tokens", *_OF_ANSWER]).to_pylist()
    groups = [answers[first : first + num_questions] for first in firsts]
    merged = table.take(pa.array(firsts, pa.int64())).drop_columns("question")
    for each in RESULT_FIELDS:
        if each.name in _MERGE:
            values = [_MERGE[each.name](group, questions) for group in groups]
            position = merged.column_names.index(each.name)
            merged = merged.set_column(position, each, pa.array(values, each.type))
    for number, question in enumerate(questions):
        if question.name == "caption":
            continue  # among the result fields
        texts = [group[number]["caption"] for group in groups]
        merged = merged.append_column(
            question.output_field, pa.array(texts, question.output_field.type)
        )
    details = [_details(group, questions) for group in groups]
    return merged.append_column(ANSWERS_FIELD, pa.array(details, ANSWERS_FIELD.type))


_FROM_WORST = (Status.ERROR, Status.TRUNCATED, Status.DAMAGED, Status.OK)
_Group = Sequence[Mapping[str, Any]]  # the answers to one row's questions


def _details(group: _Group, questions: Sequence[Question]) -> list[dict[str, Any]]:
    return [
        {"question": question.name} | {name: answer[name] for name in _OF_ANSWER}
        for question, answer in zip(questions, group, strict=True)
    ]


def _named_caption(group: _Group, questions: Sequence[Question]) -> Any:
    names = [each.name for each in questions]
    return group[names.index("caption")]["caption"] if "caption" in names else None


def _worst(group: _Group, questions: Sequence[Question]) -> str:
    statuses = {answer["status"] for answer in group}
    return next(status.value for status in _FROM_WORST if status.value in statuses)


def _error(group: _Group, questions: Sequence[Question]) -> str | None:
    """The first error, with the question's name unless all have the same."""
    errors = [answer["error"] for answer in group]
    first = next((number for number, error in enumerate(errors) if error is not None), None)
    if first is None or len(set(errors)) == 1:
        return errors[0]
    return f"{questions[first].name}: {errors[first]}"


def _first(name: str) -> Callable[[_Group, Sequence[Question]], Any]:
    return lambda group, _: next((a[name] for a in group if a[name] is not None), None)


def _total(name: str) -> Callable[[_Group, Sequence[Question]], int | None]:
    def total(group: _Group, questions: Sequence[Question]) -> int | None:
        values = [answer[name] for answer in group if answer[name] is not None]
        return sum(values) if values else None

    return total


_MERGE: Mapping[str, Callable[[_Group, Sequence[Question]], Any]] = {
    "caption": _named_caption,
    "reasoning": lambda group, _: None,
    "status": _worst,
    "error_code": _first("error_code"),
    "error": _error,
    "finish_reason": lambda group, _: None,
    "num_prompt_tokens": _total("num_prompt_tokens"),
    "num_generated_tokens": _total("num_generated_tokens"),
    "num_visual_tokens": _first("num_visual_tokens"),  # the same for all that have any
    "mean_logprob": lambda group, _: None,
    "min_logprob": lambda group, _: None,
}
