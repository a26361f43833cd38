"""Ranks that answer wrongly are found. Groups are fakes, and no Ray runs."""

import asyncio
from dataclasses import dataclass, field

import pytest

from model.engine.sequence import Completion
from parallel.groups.errors import DeadGroupError
from parallel.groups.golden import GoldenPrompts, golden_requests
from parallel.ranks.requests import Failure

REQUESTS = golden_requests(100)


@dataclass
class Group:
    """Each rank is wrong by so many nats. A rank with None never answers, one with nan fails."""

    offs: list[float | None]
    generation: int = 0
    group_id: int = 3
    ranks: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.ranks = list(range(len(self.offs)))

    async def generate(self, client_id, requests, rank):
        off = self.offs[rank]
        if off is None:
            return await asyncio.Event().wait()
        if off != off:
            return [Failure(code="engine_error", message="nan")] * len(requests)
        return [completion(-1.0 - number + off * (number == 5)) for number in range(len(requests))]


def completion(logprob: float) -> Completion:
    return Completion(
        text="",
        token_ids=(1,),
        finish_reason="length",
        num_prompt_tokens=15,
        num_generated_tokens=1,
        mean_logprob=logprob,
        min_logprob=logprob,
    )


def check(*groups: Group) -> None:
    async def main():
        golden = GoldenPrompts(REQUESTS, tolerance=0.25, timeout_s=0.05)
        for group in groups:
            await golden.check(group)  # pyright: ignore[reportArgumentType]

    asyncio.run(main())


def test_groups_that_answer_alike_are_well():
    check(Group([0.0, 0.1]), Group([-0.1]), Group([0.2, 0.0]))


@pytest.mark.parametrize(
    ("off", "message"),
    [
        pytest.param(0.5, r"group 3 \(generation 0\), rank 1.*drift by 0.5 nats", id="drift"),
        pytest.param(float("nan"), "drift by nan", id="not a number"),
        pytest.param(None, "no answer to the golden prompts", id="silence"),
    ],
)
def test_one_rank_that_does_not_is_named(off, message):
    with pytest.raises(DeadGroupError, match=message):
        check(Group([0.0]), Group([0.0, off]))


def test_golden_prompts_are_always_the_same_and_no_part_of_them_is_cached():
    again = golden_requests(100)
    for one, other in zip(REQUESTS, again, strict=True):
        assert one.prompt.token_ids.tolist() == other.prompt.token_ids.tolist()
        assert len(one.prompt.token_ids) == 15
        assert one.prompt.token_ids.max() < 100
