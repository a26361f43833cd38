"""Fan-in: the results of a row's several prompts become one row again.

Between the prepare and the write stage, a row of the input with several prompts is several rows of
the table. They stand together, numbered by `prompt_part` from 0 on, and the generate stage answers
them like any other rows. Then `fan_in` joins them:

    row_id prompt_part | caption         row_id | mood  | answers
    a      0           | happy     -->   a      | happy | [{status: ok, ...}, ...]
    a      1           | ...
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from model.engine.sequence import SamplingParams
from parallel.ranks.requests import Failure, Outcome
from pipeline.schema import (
    CHOICE_LOGPROBS_FIELD,
    NAMED_PROMPT_FIELD,
    PROMPT_NUMBER_FIELD,
    RESULT_FIELDS,
    SAMPLES_FIELD,
    TOKEN_LOGPROBS_FIELD,
    WINDOW_FIELD,
)
from pipeline.status import ErrorCode, Status

PromptResult = Mapping[str, Any]  # the result columns of one prompt, and what tells it apart
Rule = Callable[[Sequence[PromptResult]], Any]  # the results of a row -> one value of the row

# The columns of each prompt that a row keeps in a list.
DETAIL_FIELDS = tuple(
    pa.schema(RESULT_FIELDS).field(name)
    for name in (
        "status error_code error finish_reason num_prompt_tokens num_generated_tokens "
        "mean_logprob min_logprob reasoning"
    ).split()
)
_READ = ("caption", "num_visual_tokens", "frame_times_s", *(field.name for field in DETAIL_FIELDS))
# Columns that only prompts have, not the rows that they are joined into.
_OF_PROMPTS = tuple(
    field.name
    for field in (
        *(PROMPT_NUMBER_FIELD, NAMED_PROMPT_FIELD, WINDOW_FIELD),
        *(SAMPLES_FIELD, TOKEN_LOGPROBS_FIELD, CHOICE_LOGPROBS_FIELD),
    )
)
_FROM_WORST = (Status.ERROR, Status.TRUNCATED, Status.DAMAGED, Status.OK)


def extra_fields(samplings: Sequence[SamplingParams]) -> list[pa.Field]:
    """The result columns that sampling settings add."""
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
    read: Callable[[PromptResult], PromptResult] = lambda result: result,
) -> pa.Table:
    """Join the answered prompts of each row of the input into one row.

    The table has a row for each answered prompt; those of one row of the input stand together,
    ordered by their number. The rules, for result columns and for `extra` ones, get what `read`
    makes of each result. A result column without a rule keeps the value of the first prompt.
    """
    own = [name for name in _OF_PROMPTS if name in table.column_names]
    rows: list[list[PromptResult]] = []
    firsts: list[int] = []
    for index, result in enumerate(table.select([*_READ, *own]).to_pylist()):
        if result[PROMPT_NUMBER_FIELD.name] == 0:
            rows.append([])
            firsts.append(index)
        rows[-1].append(read(result))
    merged = table.take(pa.array(firsts, pa.int64()))
    for field in RESULT_FIELDS:
        if field.name in rules:
            values = pa.array([rules[field.name](row) for row in rows], field.type)
            merged = merged.set_column(merged.column_names.index(field.name), field, values)
    for field, rule in extra:
        merged = merged.append_column(field, pa.array([rule(row) for row in rows], field.type))
    return merged.drop_columns(own)


def worst(statuses: Iterable[str]) -> str:
    """The worst of some statuses."""
    present = set(statuses)
    return next(status.value for status in _FROM_WORST if status.value in present)


def first_error(name_of: Callable[[PromptResult], str]) -> Rule:
    """The rule for `error`: the first one, after the prompt's name unless all have the same."""

    def rule(results: Sequence[PromptResult]) -> str | None:
        if len({result["error"] for result in results}) == 1:
            return results[0]["error"]
        first = next(result for result in results if result["error"] is not None)
        return f"{name_of(first)}: {first['error']}"

    return rule


def first_of(name: str) -> Rule:
    """The rule that takes the first value that is not null."""
    return lambda results: next((each[name] for each in results if each[name] is not None), None)


def total_of(name: str) -> Rule:
    """The rule that adds up the values; null if all are null."""

    def rule(results: Sequence[PromptResult]) -> int | None:
        values = [result[name] for result in results if result[name] is not None]
        return sum(values) if values else None

    return rule


def null(results: Sequence[PromptResult]) -> None:
    """The rule for a column that makes no sense for several prompts."""


RULES: Mapping[str, Rule] = {
    "reasoning": null,
    "status": lambda results: worst(result["status"] for result in results),
    "error_code": first_of("error_code"),
    "finish_reason": null,
    "num_prompt_tokens": total_of("num_prompt_tokens"),
    "num_generated_tokens": total_of("num_generated_tokens"),
    "mean_logprob": null,
    "min_logprob": null,
}


def result_of(outcome: Outcome, *, is_damaged: bool = False) -> dict[str, Any]:
    """The result columns of one answered prompt; a column that is missing here is null.

    The media of a prompt are damaged if they could be decoded only in part.
    """
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
