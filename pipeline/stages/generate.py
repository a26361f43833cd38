"""Prompts -> captions: a thin asynchronous client of the engine groups.

`Generate` is a plain class that needs no running Ray. Ray Data calls one instance with several
batches at a time, so prompts of all of them are in flight together. Every row that comes in goes
out, whatever dies meanwhile.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import pyarrow as pa

from model.engine.sequence import SamplingParams
from model.inputs.prompt import Prompt, PromptError
from parallel.groups.errors import DeadGroupError, MovedGroupError
from parallel.ranks.requests import Failure, Outcome, Request
from pipeline.media.windows import Windows
from pipeline.output.poison import GROUPS, KILLED_GROUPS
from pipeline.prompts.fan_in import extra_fields, result_of
from pipeline.prompts.named_answers import answers_in_rows
from pipeline.prompts.named_prompts import NamedPrompt
from pipeline.prompts.prompt_columns import PROMPT_COLUMNS, decode_prompt
from pipeline.prompts.window_answers import windows_in_rows
from pipeline.schema import MEDIA_FIELDS, NAMED_PROMPT_FIELD, RESULT_FIELDS
from pipeline.stages.merge import Merger
from pipeline.status import ErrorCode

_MAX_BACKOFF_S = 30.0


class Lease(Protocol):
    """What the stage uses of `parallel.groups.client.Lease`."""

    async def generate(
        self, sets: Sequence[Sequence[Request]]
    ) -> list[list[Outcome | DeadGroupError]]:
        """Answer each set on one rank; a death means that somebody else must."""
        ...


class EngineGroups(Protocol):
    """What the stage uses of `parallel.groups.client.Turn`."""

    def lease(
        self, num_tokens: int, *, exclusive: bool = False
    ) -> AbstractAsyncContextManager[Lease]:
        """Lease a group; `exclusive` keeps all other requests out of it."""
        ...


class SharedGroups(EngineGroups, Protocol):
    """What the workers of a run use of `parallel.groups.client.Groups`."""

    def turn(self, num_requests: int) -> AbstractAsyncContextManager[EngineGroups]:
        """Wait for room for requests; what is yielded leases the groups that have it."""
        ...

    def take_crossed_bytes(self) -> int:
        """Return the bytes of prompts that went to other nodes from here, since the last call."""
        ...


@dataclass(frozen=True)
class Generate:
    """The stage between prepare and the writer; stateless, so a retried batch is just redone."""

    groups: EngineGroups  # they answer
    sampling: SamplingParams  # of every row, with the seed of its own `seed` column
    named_prompts: Sequence[NamedPrompt] = ()  # of each row, each with a sampling of its own
    windows: Windows | None = None  # that each row has
    merger: Merger | None = None  # makes one caption of a row's windows; None lists them
    backoff_s: float = 0.5  # before the second try of a row; doubles with each further one

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Answer a table of `row_id`, `PREPARED_FIELDS` and whatever else.

        Yields as many rows, or one for all named prompts or windows of a row: `RESULT_FIELDS`, the
        columns that those add, `extra_fields` and whatever else, without prompt columns and `seed`.

        Raises:
            GroupError: the machines cannot go on; the job must stop.
        """
        outcomes: dict[int, Outcome] = {}
        requests: dict[int, Request] = {}
        shown: Prompt | None = None
        for row in range(batch.num_rows):
            try:
                request = self._request(batch, row, shown)
            except PromptError as error:
                outcomes[row] = Failure(code=error.code, message=error.message)
            else:
                if request is not None:
                    requests[row] = request
                    shown = request.prompt
        outcomes.update(await self._answer(requests))
        samplings = [each.sampling for each in self.named_prompts] or [self.sampling]
        results = _with_results(batch, outcomes, [*RESULT_FIELDS, *extra_fields(samplings)])
        if self.named_prompts:
            results = answers_in_rows(results, self.named_prompts)
        if self.windows is not None:
            results = windows_in_rows(results, self.windows)
        if self.merger is not None:
            results = await self.merger.merge(results, self._answer)
        yield results

    def _request(self, batch: pa.Table, row: int, before: Prompt | None) -> Request | None:
        prompt = decode_prompt(batch, row, before)
        if prompt is None:
            return None  # it failed before, and its columns say why
        return Request(
            request_id=batch["row_id"][row].as_py(),
            prompt=prompt,
            params=replace(self._sampling_of(batch, row), seed=batch["seed"][row].as_py()),
        )

    def _sampling_of(self, batch: pa.Table, row: int) -> SamplingParams:
        if not self.named_prompts:
            return self.sampling
        return self.named_prompts[batch[NAMED_PROMPT_FIELD.name][row].as_py()].sampling

    async def _answer(self, requests: Mapping[int, Request]) -> dict[int, Outcome]:
        """Answer all: together as long as that works, each alone where it does not."""
        outcomes: dict[int, Outcome] = {}
        num_deaths: Counter[int] = Counter()
        together = list(requests)
        while together:
            answers = await self._try({row: requests[row] for row in together})
            died = [row for row, answer in answers.items() if isinstance(answer, DeadGroupError)]
            outcomes |= {row: a for row, a in answers.items() if not isinstance(a, DeadGroupError)}
            # A group that ended with its node says nothing of the rows that it had.
            num_deaths.update(row for row in died if not isinstance(answers[row], MovedGroupError))
            if died:
                backoff_s = self.backoff_s * 2 ** (max(num_deaths[row] for row in died) - 1)
                await asyncio.sleep(min(_MAX_BACKOFF_S, backoff_s))
            together = [row for row in died if not GROUPS.is_quarantined(num_deaths[row])]
        for row in [row for row in requests if row not in outcomes]:
            outcomes[row] = await self._answer_alone(requests[row])
        return outcomes

    async def _answer_alone(self, request: Request) -> Outcome:
        deaths: list[DeadGroupError] = []
        while len(deaths) < GROUPS.alone:
            (answer,) = (await self._try({0: request}, alone=True)).values()
            if not isinstance(answer, DeadGroupError):
                return answer
            if not isinstance(answer, MovedGroupError):
                deaths.append(answer)
        return Failure(code=ErrorCode.POISON_ROW, message=f"{KILLED_GROUPS}: {deaths[-1]}")

    async def _try(
        self, requests: Mapping[int, Request], *, alone: bool = False
    ) -> dict[int, Outcome | DeadGroupError]:
        num_tokens = sum(request.num_tokens for request in requests.values())
        sets = _with_same_pixels(requests)
        async with self.groups.lease(num_tokens, exclusive=alone) as lease:
            answers = await lease.generate([[requests[row] for row in rows] for rows in sets])
        return dict(zip(chain(*sets), chain(*answers), strict=True))


def _with_same_pixels(requests: Mapping[int, Request]) -> list[list[int]]:
    """Put rows that follow each other and show the same pixels together.

    One rank answers such rows: the pixels travel to it once, and it computes them once.
    """
    sets: list[list[int]] = []
    last = None
    for row, request in requests.items():
        patches = request.prompt.patches
        if len(patches) and patches is last:
            sets[-1].append(row)
        else:
            sets.append([row])
        last = patches
    return sets


def _with_results(
    batch: pa.Table, outcomes: Mapping[int, Outcome], fields: Sequence[pa.Field]
) -> pa.Table:
    """Replace the prompt columns by the result columns."""
    damages = batch["num_decode_errors"].to_pylist()
    answers = {
        row: result_of(outcome, is_damaged=bool(damages[row])) for row, outcome in outcomes.items()
    }
    table = batch.drop_columns([*PROMPT_COLUMNS, "seed"])
    for field in fields:
        if field.name == "row_id" or field in MEDIA_FIELDS:
            continue
        is_known = field.name in table.column_names
        values = table[field.name].to_pylist() if is_known else [None] * batch.num_rows
        for row, result in answers.items():
            values[row] = result.get(field.name)
        column = pa.array(values, field.type)
        if is_known:
            table = table.set_column(table.column_names.index(field.name), field, column)
        else:
            table = table.append_column(field, column)
    return table
