"""`Merger`: the captions of a row's windows -> one caption, by asking the same engine.

    captions  c c c c c c c    as many as a prompt holds go into one; where not all do, their
              [-----] [---]    summaries are merged in turn
                 s      s
                 [------]
                 caption

The prompts are text alone. A row with a single caption keeps it as it is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from model.engine.sequence import SamplingParams
from model.inputs.processor import Processor
from model.inputs.prompt import PromptError
from parallel.ranks.requests import Failure, Outcome, Request
from pipeline.prompts.fan_in import result_of, worst
from pipeline.prompts.prompt_columns import row_seed
from pipeline.prompts.window_answers import TIMELINE_FIELD, labelled
from pipeline.schema import RESULT_FIELDS, Status

Answer = Callable[[Mapping[int, Request]], Awaitable[Mapping[int, Outcome]]]
_Caption = tuple[float, float, str]  # start and end in seconds, text

_ASKED = (
    "caption status error_code error finish_reason num_prompt_tokens num_generated_tokens "
    "mean_logprob min_logprob reasoning"
).split()
_SUMS = ("num_prompt_tokens", "num_generated_tokens")
_NO_TEXT = dict.fromkeys(("caption", "reasoning", "finish_reason", "mean_logprob", "min_logprob"))
_MARGIN = 16  # tokens by which texts in one prompt may differ from the texts one by one


class Merger:
    """Merges the rows of one run.

    The captions follow the prompt, which says what is wanted of them. A schema of `sampling` holds
    for the windows only.
    """

    def __init__(self, processor: Processor, prompt: str, sampling: SamplingParams) -> None:
        self._processor = processor
        self._prompt = prompt
        self._seed = sampling.seed
        self._sampling = replace(sampling, schema=None, thinking=False)
        context_len = processor.config.text.max_position_embeddings
        room = max(context_len - sampling.max_tokens, context_len // 2)
        self._room = room - len(processor.prompt([prompt]).token_ids) - _MARGIN

    async def merge(self, rows: pa.Table, answer: Answer) -> pa.Table:
        """Put one caption in place of the list of captions, in rows with a `timeline`.

        Tokens and status of the merge are added to those of the windows. Where the merge fails, the
        row has its error, and the timeline stays. `answer` must answer all requests.
        """
        names = ["row_id", TIMELINE_FIELD.name, *_ASKED]
        before = rows.select(names).to_pylist()
        after = await asyncio.gather(*(self._merge_row(row, answer) for row in before))
        for field in RESULT_FIELDS:
            if field.name in _ASKED:
                values = pa.array([row[field.name] for row in after], field.type)
                rows = rows.set_column(rows.column_names.index(field.name), field, values)
        return rows

    async def _merge_row(self, row: Mapping[str, Any], answer: Answer) -> Mapping[str, Any]:
        captions = [
            (window["start_s"], window["end_s"], window["caption"])
            for window in row[TIMELINE_FIELD.name] or ()
            if window["caption"] is not None
        ]
        merged = dict(row)
        level = 0
        while len(captions) > 1:
            seed_id = f"{row['row_id']}/merge/{level}"
            try:
                captions = await self._summaries(captions, seed_id, answer, merged)
            except PromptError as error:
                result = result_of(Failure(code=error.code, message=error.message))
                return merged | _NO_TEXT | result
            level += 1
        return merged | {"caption": captions[0][2] if captions else None}

    async def _summaries(
        self, captions: Sequence[_Caption], seed_id: str, answer: Answer, merged: dict[str, Any]
    ) -> list[_Caption]:
        """Make fewer captions, of longer parts, and add what they cost to the row's columns."""
        groups = list(self._groups(captions))
        if len(groups) == len(captions):
            raise PromptError("prompt_too_long", "no two captions to merge fit into one prompt")
        requests = {
            number: self._request(group, f"{seed_id}/{number}")
            for number, group in enumerate(groups)
            if len(group) > 1
        }
        outcomes = await answer(requests)
        for number, outcome in outcomes.items():
            if isinstance(outcome, Failure):
                raise PromptError(outcome.code, f"merging the captions: {outcome.message}")
            _add(merged, result_of(outcome, is_damaged=merged["status"] == Status.DAMAGED))
            groups[number] = [(groups[number][0][0], groups[number][-1][1], outcome.text)]
        return [caption for (caption,) in groups]

    def _groups(self, captions: Sequence[_Caption]) -> Iterator[list[_Caption]]:
        """Neighbours that fit into one prompt."""
        group: list[_Caption] = []
        num_held = 0
        for caption in captions:
            num_tokens = len(self._processor.tokenizer.encode(f"{labelled(*caption)}\n"))
            if group and num_held + num_tokens > self._room:
                yield group
                group, num_held = [], 0
            group.append(caption)
            num_held += num_tokens
        yield group

    def _request(self, captions: Sequence[_Caption], seed_id: str) -> Request:
        text = "\n".join([self._prompt, "", *(labelled(*caption) for caption in captions)])
        return Request(
            request_id=seed_id,
            prompt=self._processor.prompt([text]),
            params=replace(self._sampling, seed=row_seed(self._seed, seed_id)),
        )


def _add(merged: dict[str, Any], result: Mapping[str, Any]) -> None:
    """Take the columns of a summary; what counts and what is worst come from all."""
    for name in _ASKED:
        if name in _SUMS:
            merged[name] = (merged[name] or 0) + result[name]
        elif name == "status":
            merged[name] = worst((merged[name], result[name]))
        elif name not in ("error_code", "error"):  # those of a window
            merged[name] = result[name]
