"""Golden prompts: the same few prompts for every rank, at its start and repeatedly afterwards.

A rank with a corrupt shard or a faulty card answers like the others, only wrongly, and would spoil
captions without a sign. So all ranks of a run answer the same prompts, and the first answers of the
run are the reference for all later ones. A prompt is shorter than a block of the cache, so nothing
of it is shared, and every answer is computed anew. Only the log-probability of the first token is
compared: it changes smoothly, while later tokens may differ after a near tie.

Healthy ranks drift too. In bfloat16 a token's probability depends on what else is in the batch: in
a small mixture of experts, 13.7 % of the tokens moved by more than 10 % between batches of 1 and 8.
Therefore each prompt has a step for itself, which leaves only what other ranks bring to the same
experts; the noise that is left is measured at the start of each group; and a group ends only if the
same prompt drifts on the same rank in each of several asks.

Letters: A asks of all prompts, R ranks, N golden prompts.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model.config import BLOCK_SIZE
from model.engine.sequence import Completion, SamplingParams
from model.inputs.prompt import Prompt
from parallel.groups.errors import DeadGroupError
from parallel.groups.group import EngineGroup, place
from parallel.ranks.requests import Outcome, Request

_NUM_PROMPTS = 8
# Whether each prompt has a step for itself, in the asks at the start of a group. Prompts that share
# steps show how much the batch changes.
_ASKS_AT_START = (True, False, True, False, True)
_NUM_ASKS = 3  # of a later check, at once, until no prompt has drifted in all of them
_NOISE_FACTOR = 6.0  # so many standard deviations are no drift
# In nats. The least is for noise that the start does not show: other groups may have other cards,
# and later the experts get rows of long prompts too. The greatest, a factor of e in a probability,
# is for groups that are noisy because they are broken: their noise must not make them pass.
_LEAST, _GREATEST = 0.25, 1.0

_CAUSE = "a corrupt file or a faulty card? (if every group says so, the first one was at fault)"

logger = logging.getLogger(__name__)


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
            own_step=True,
            may_wait=False,  # else each ask takes the longest wait of a rank on a CPU
        )
        for token_ids in generator.integers(0, num_token_ids, shape)
    ]


@dataclass(frozen=True)
class Tolerance:
    """How far the answers of a group may be from the reference."""

    nats: float
    origin: str  # for messages

    @classmethod
    def of_noise(cls, noise: float) -> Self:
        """Make a tolerance of a standard deviation in nats."""
        nats = _NOISE_FACTOR * noise
        measured = f"the noise of {noise:.2g} nats at its start"
        if nats < _LEAST:
            return cls(_LEAST, f"the least, as {_NOISE_FACTOR:g} times {measured} is below it")
        if nats > _GREATEST:
            return cls(_GREATEST, f"the greatest, as {_NOISE_FACTOR:g} times {measured} is above")
        return cls(nats, f"{_NOISE_FACTOR:g} times {measured}")


class GoldenPrompts:
    """Compares the answers of every rank with the first answers of the run.

    A rank may take `timeout_s` for one answer to all prompts. Without requests the check is off.
    """

    def __init__(self, requests: Sequence[Request], timeout_s: float) -> None:
        self._requests = requests
        self._timeout_s = timeout_s
        self._reference: NDArray[np.float64] | None = None  # [N]
        self._tolerances: dict[tuple[int, int], Tolerance] = {}  # by group and generation

    async def check(self, group: EngineGroup) -> None:
        """Ask every rank; the first check of a group also measures its noise.

        Raises DeadGroupError: a rank is silent, or drifts in each ask.
        """
        if not self._requests:
            return
        tolerance = self._tolerances.get((group.group_id, group.generation))
        if tolerance is None:
            await self._begin(group)
        else:
            ranks = range(len(group.ranks))
            await asyncio.gather(*(self._check(group, rank, tolerance) for rank in ranks))

    async def _begin(self, group: EngineGroup) -> None:
        """Measure the noise of a group; its answers become the reference if there is none."""
        ranks = range(len(group.ranks))
        rows = [
            await asyncio.gather(*(self._ask(group, rank, own_step=own_step) for rank in ranks))
            for own_step in _ASKS_AT_START
        ]
        answers = np.array(rows)  # [A, R, N]
        tolerance = Tolerance.of_noise(_noise(answers))
        reference = self._reference
        if reference is None:
            reference = _median(answers[list(_ASKS_AT_START), 0])
        for rank in ranks:
            drift = _drift(answers[:, rank], reference)
            if not drift <= tolerance.nats:  # as no comparison with nan is true
                message = _message(group, rank, drift, len(answers), tolerance)
                raise DeadGroupError(f"{message}; {_CAUSE}")
        self._reference = reference
        self._tolerances[group.group_id, group.generation] = tolerance

    async def _check(self, group: EngineGroup, rank: int, tolerance: Tolerance) -> None:
        """Ask a rank until no prompt has drifted in each ask; raise DeadGroupError if one has."""
        assert self._reference is not None
        answers: list[NDArray[np.float64]] = []
        message = ""
        while len(answers) < _NUM_ASKS:
            answers.append(await self._ask(group, rank, own_step=True))
            drift = _drift(np.array(answers), self._reference)
            if drift <= tolerance.nats:
                return
            message = _message(group, rank, drift, len(answers), tolerance)
            logger.info("%s", message)
        raise DeadGroupError(f"{message}; {_CAUSE}")

    async def _ask(self, group: EngineGroup, rank: int, *, own_step: bool) -> NDArray[np.float64]:
        """Return the log-probabilities [N]; nan where the prompt failed."""
        requests = [replace(request, own_step=own_step) for request in self._requests]
        try:
            async with asyncio.timeout(self._timeout_s):
                outcomes = await group.generate("golden prompts", requests, rank)
        except TimeoutError:
            silence = f"no answer to the golden prompts in {self._timeout_s:g} s"
            silence = f"{silence}{place(group.nodes, rank)}"
            raise DeadGroupError(f"{_name(group, rank)}: {silence}") from None
        return np.array([_logprob(outcome) for outcome in outcomes])


def _noise(answers: NDArray[np.float64]) -> float:
    """Return the standard deviation of the answers [A, R, N] over asks, pooled over the rest."""
    of_ranks = [_finite(answers[:, rank]) for rank in range(answers.shape[1])]
    variances = [own.var(axis=0, ddof=1).mean() for own in of_ranks if len(own) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else 0.0


def _median(answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median [N] of answers [A, N] over the asks in which all are numbers."""
    finite = _finite(answers)
    return np.median(finite, axis=0) if len(finite) else answers[0]


def _finite(answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keep the asks in which all answers [A, N] are numbers."""
    return answers[np.all(np.isfinite(answers), axis=1)]


def _drift(answers: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Return the worst prompt's least drift over asks [A, N]; nan if one was nan in each ask.

    One noisy answer is no drift, nor are several to different prompts.
    """
    drifts = np.abs(answers - reference)
    return float(np.fmin.reduce(drifts, axis=0).max())  # fmin takes a number rather than nan


def _logprob(outcome: Outcome) -> float:
    return outcome.mean_logprob if isinstance(outcome, Completion) else np.nan


def _name(group: EngineGroup, rank: int) -> str:
    return f"group {group.group_id} (generation {group.generation}), rank {rank}"


def _message(
    group: EngineGroup, rank: int, drift: float, num_asks: int, tolerance: Tolerance
) -> str:
    return (
        f"{_name(group, rank)}: the golden prompts drift by {drift:.3g} nats from the first "
        f"answers of this run, the same prompt in each of {num_asks} asks; {tolerance.nats:.3g} "
        f"nats are allowed ({tolerance.origin}){place(group.nodes, rank)}"
    )
