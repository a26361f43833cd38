"""Parts: the prompts of one row of the input, between the prepare and the generate stage.

A row that asks several things is several rows of the table there, one after the other, numbered by
`prompt_part`. The generate stage answers them like any rows, then `fan_in` makes one of them again:

    row_id prompt_part | answer          row_id | mood  | answers
    a      0           | happy     -->   a      | happy | [{status: ok, ...}, ...]
    a      1           | ...
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from model.engine.sequence import SamplingParams
from parallel.ranks.worker import Failure, Outcome
from pipeline.schema import (
    CHOICE_LOGPROBS_FIELD,
    PART_FIELD,
    QUESTION_FIELD,
    RESULT_FIELDS,
    SAMPLES_FIELD,
    TOKEN_LOGPROBS_FIELD,
    WINDOW_FIELD,
)
from pipeline.status import ErrorCode, Status

Part = Mapping[str, Any]  # the result columns of one prompt, with its number and its window
Rule = Callable[[Sequence[Part]], Any]  # the parts of a row -> a value of the row

# What a list of parts says of each.
PART_FIELDS = tuple(
    next(field for field in RESULT_FIELDS if field.name == name)
    for name in (
        "status error_code error finish_reason num_prompt_tokens num_generated_tokens "
        "mean_logprob min_logprob reasoning"
    ).split()
)
_READ = ("caption", "num_visual_tokens", "frame_times_s", *(field.name for field in PART_FIELDS))
# Of a part alone: a row has no such columns.
_OF_PART = tuple(
    field.name
    for field in (
        *(PART_FIELD, QUESTION_FIELD, WINDOW_FIELD),
        *(SAMPLES_FIELD, TOKEN_LOGPROBS_FIELD, CHOICE_LOGPROBS_FIELD),
    )
)
_FROM_WORST = (Status.ERROR, Status.TRUNCATED, Status.DAMAGED, Status.OK)


def extra_fields(samplings: Sequence[SamplingParams]) -> list[pa.Field]:
    """The result columns that these settings add."""
    wanted = {
        SAMPLES_FIELD: any(each.n > 1 for each in samplings),
        TOKEN_LOGPROBS_FIELD: any(each.token_logprobs for each in samplings),
        CHOICE_LOGPROBS_FIELD: any(each.choices for each in samplings),
    }
    return [field for field, is_wanted in wanted.items() if is_wanted]


def fan_in(
    table: pa.Table,
    rules: Mapping[str, Rule],
    extra: Sequence[tuple[pa.Field, Rule]],
    read: Callable[[Part], Part] = lambda part: part,
) -> pa.Table:
    """One row for each row of the input.

    Args:
        table: answered parts, those of a row one after the other, by number.
        rules: for the result columns; where there is none, the first part's value stands.
        extra: further columns.
        read: makes of each part what the rules see.
    """
    own = [name for name in _OF_PART if name in table.column_names]
    rows: list[list[Part]] = []
    firsts: list[int] = []
    for index, part in enumerate(table.select([*_READ, *own]).to_pylist()):
        if part[PART_FIELD.name] == 0:
            rows.append([])
            firsts.append(index)
        rows[-1].append(read(part))
    merged = table.take(pa.array(firsts, pa.int64()))
    for field in RESULT_FIELDS:
        if field.name in rules:
            values = pa.array([rules[field.name](row) for row in rows], field.type)
            merged = merged.set_column(merged.column_names.index(field.name), field, values)
    for field, rule in extra:
        merged = merged.append_column(field, pa.array([rule(row) for row in rows], field.type))
    return merged.drop_columns(own)


def worst_status(parts: Sequence[Part]) -> str:
    """The status of a row: that of its worst part."""
    return worst(part["status"] for part in parts)


def worst(statuses: Any) -> str:
    """The worst of some statuses."""
    there = set(statuses)
    return next(status.value for status in _FROM_WORST if status.value in there)


def first_error(names: Callable[[Part], str]) -> Rule:
    """The first error, with the name of its part unless all parts have the same."""

    def rule(parts: Sequence[Part]) -> str | None:
        errors = [part["error"] for part in parts]
        first = next((part for part in parts if part["error"] is not None), None)
        if first is None or len(set(errors)) == 1:
            return errors[0]
        return f"{names(first)}: {first['error']}"

    return rule


def first_of(name: str) -> Rule:
    """The first value that is not null."""
    return lambda parts: next((part[name] for part in parts if part[name] is not None), None)


def total_of(name: str) -> Rule:
    """The sum of the values; null where all are."""

    def rule(parts: Sequence[Part]) -> int | None:
        values = [part[name] for part in parts if part[name] is not None]
        return sum(values) if values else None

    return rule


def nothing(parts: Sequence[Part]) -> None:
    """Null: there is no such value for several parts."""


RULES: Mapping[str, Rule] = {
    "reasoning": nothing,
    "status": worst_status,
    "error_code": first_of("error_code"),
    "finish_reason": nothing,
    "num_prompt_tokens": total_of("num_prompt_tokens"),
    "num_generated_tokens": total_of("num_generated_tokens"),
    "mean_logprob": nothing,
    "min_logprob": nothing,
}


def result_of(outcome: Outcome, *, is_damaged: bool = False) -> dict[str, Any]:
    """The result columns of one answered row; what is missing is null."""
    if isinstance(outcome, Failure):
        known = outcome.code in set(ErrorCode)
        return {
            "status": Status.ERROR.value,
            "error_code": outcome.code if known else ErrorCode.ENGINE_ERROR.value,
            "error": outcome.message if known else f"{outcome.code}: {outcome.message}",
        }
    samples = (outcome, *outcome.others)
    is_truncated = any(each.is_truncated for each in samples)
    whole = Status.DAMAGED if is_damaged else Status.OK
    return {
        "caption": outcome.text,
        "reasoning": outcome.reasoning,
        "samples": [each.text for each in samples],
        "status": (Status.TRUNCATED if is_truncated else whole).value,
        "finish_reason": outcome.finish_reason,
        "num_prompt_tokens": outcome.num_prompt_tokens,
        "num_generated_tokens": sum(each.num_generated_tokens for each in samples),
        "mean_logprob": outcome.mean_logprob,
        "min_logprob": outcome.min_logprob,
        "token_logprobs": outcome.token_logprobs,
        "choice_logprobs": outcome.choice_logprobs,
    }
