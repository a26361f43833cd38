"""Golden prompts: the same few prompts for every rank, at its start and repeatedly afterwards.

A rank with a corrupt shard or a faulty card answers like the others, only wrongly, and would spoil
captions without a sign. So all ranks of a run answer the same prompts, and the first answers of the
run are the reference for all later ones. A prompt is shorter than a block of the cache, so nothing
of it is shared, and every answer is computed anew. Only the log-probability of the first token is
compared: it changes smoothly, while later tokens may differ after a near tie.
"""

import asyncio
import math
from collections.abc import Sequence

import numpy as np

from model.config import BLOCK_SIZE
from model.engine.sequence import Completion, SamplingParams
from model.inputs.prompt import Prompt
from parallel.groups.errors import DeadGroupError
from parallel.groups.group import EngineGroup
from parallel.ranks.requests import Outcome, Request

_NUM_PROMPTS = 8


def golden_requests(num_token_ids: int, seed: int = 0) -> list[Request]:
    """Make prompts of random ids below `num_token_ids`, all of which must be ordinary text."""
    generator = np.random.default_rng(seed)
    shape = (_NUM_PROMPTS, BLOCK_SIZE - 1)
    return [
        Request(
            request_id="golden",
            prompt=Prompt(
                token_ids=token_ids.astype(np.int32),
                patches=np.zeros((0, 3, 14, 14), np.uint8),
                grid_hw=np.zeros((0, 2), np.int32),
            ),
            params=SamplingParams(max_tokens=1),
        )
        for token_ids in generator.integers(0, num_token_ids, shape)
    ]


class GoldenPrompts:
    """Compares the answers of every rank with the first answers of the run.

    The log-probability of an answer may differ by `tolerance` nats, and a rank may take `timeout_s`
    for all its answers. Without requests the check is off.
    """

    def __init__(self, requests: Sequence[Request], tolerance: float, timeout_s: float) -> None:
        self._requests = requests
        self._tolerance = tolerance
        self._timeout_s = timeout_s
        self._expected: list[float] | None = None

    async def check(self, group: EngineGroup) -> None:
        """Ask every rank; raise DeadGroupError if one is silent or drifts from the first."""
        if self._requests:
            await asyncio.gather(*(self._ask(group, rank) for rank in range(len(group.ranks))))

    async def _ask(self, group: EngineGroup, rank: int) -> None:
        who = f"group {group.group_id} (generation {group.generation}), rank {rank}"
        try:
            async with asyncio.timeout(self._timeout_s):
                outcomes = await group.generate("golden prompts", self._requests, rank)
        except TimeoutError:
            silence = f"no answer to the golden prompts in {self._timeout_s:g} s"
            raise DeadGroupError(f"{who}: {silence}") from None
        answers = [_logprob(outcome) for outcome in outcomes]
        expected = self._expected = self._expected or answers
        drifts = [abs(got - wanted) for got, wanted in zip(answers, expected, strict=True)]
        # Written as `not all(... <= ...)`, because every comparison with nan is false: a rank whose
        # answer is nan drifts too.
        if not all(drift <= self._tolerance for drift in drifts):
            worst = max(drifts, key=lambda drift: math.inf if math.isnan(drift) else drift)
            raise DeadGroupError(
                f"{who}: the golden prompts drift by {worst:.3g} nats from the first answers of "
                f"this run, more than {self._tolerance:g}; a corrupt file or a faulty card? (if "
                "every group says so, the first one was at fault)"
            )


def _logprob(outcome: Outcome) -> float:
    return outcome.mean_logprob if isinstance(outcome, Completion) else math.nan
