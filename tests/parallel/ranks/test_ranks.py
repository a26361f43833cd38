"""Groups of several ranks as real processes: joined, served, killed, stopped, left behind."""

import asyncio
import os
import re
import signal
import time
from functools import partial

import pytest
import torch
from ray.util.placement_group import placement_group_table

from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.sequence import Completion, SamplingParams
from model.inputs.processor import Processor
from parallel.experts.policy import Exchange
from parallel.groups.client import Groups
from parallel.groups.errors import DeadGroupError, GroupError
from parallel.groups.golden import golden_requests
from parallel.groups.spec import GroupSpec
from parallel.ranks.ep_engine import load_ep_engine
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.requests import Request
from tests.tiny import tiny_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_local")]

CONFIG = EngineConfig(max_batch_size=4, cache_gib=0.01)
TEXTS = [f"circle {number}" for number in range(8)]
NUM_TOKENS = 24


class MarkedEngine:
    """An engine that says which process and rank it is, so that tests can kill it."""

    def __init__(self, checkpoint, rank_spec: RankSpec | None) -> None:
        assert rank_spec is not None
        self._engine = load_ep_engine(checkpoint, CONFIG, rank_spec, Exchange())
        self._who = {"pid": os.getpid(), "rank": rank_spec.rank}
        self.add, self.step = self._engine.add, self._engine.step
        self.cancel, self.close = self._engine.cancel, self._engine.close
        self.expert_load = self._engine.expert_load
        self.has_work = True

    def stats(self):
        num_bytes = sum(p.nbytes for p in self._engine._engine.model.parameters())
        return {**self._engine.stats(), **self._who, "bytes": num_bytes}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def requests(checkpoint):
    processor = Processor.from_checkpoint(checkpoint)
    params = SamplingParams(max_tokens=NUM_TOKENS)
    return [
        Request(request_id=text, prompt=processor.prompt([text]), params=params) for text in TEXTS
    ]


@pytest.fixture(scope="module")
def expected(checkpoint, requests):
    torch.set_num_threads(1)
    engine = Engine.from_checkpoint(checkpoint, CONFIG)
    for request in requests:
        engine.add(request.request_id, request.prompt, request.params)
    done = {}
    while engine.has_work:
        done |= dict(engine.step())
    return [done[text].token_ids for text in TEXTS]


def spec(checkpoint, **changes) -> GroupSpec:
    timeouts = {"heartbeat_s": 0.3, "heartbeat_timeout_s": 3.0, "start_timeout_s": 300.0}
    return GroupSpec(
        engine_factory=partial(MarkedEngine, checkpoint),
        golden=tuple(golden_requests(256)),
        **{"num_ranks": 2, "num_cpus_per_rank": 0.25, **timeouts, **changes},
    )


def rank_stats(groups: Groups, num_groups: int = 1):
    """Wait until all groups are ready and checked; return the numbers of the first one's ranks."""
    while True:
        status = groups.status()
        if status.num_ready == num_groups and len(status.rank_stats) == num_groups:
            return status.rank_stats[0]
        time.sleep(0.05)


async def answer(groups: Groups, request: Request) -> tuple[int, ...]:
    while True:
        async with groups.lease(request.num_tokens) as lease:
            ((outcome,),) = await lease.generate([[request]])
        if isinstance(outcome, DeadGroupError):
            continue
        assert isinstance(outcome, Completion)
        return outcome.token_ids


async def answer_all(groups: Groups, requests, pid=0, how=signal.SIGKILL) -> list[tuple[int, ...]]:
    """Answer all requests; send a signal to a process meanwhile, if one is given."""
    answers = [asyncio.ensure_future(answer(groups, request)) for request in requests]
    if pid:
        await asyncio.sleep(0.2)
        os.kill(pid, how)
    return await asyncio.gather(*answers)


def num_placement_groups() -> int:
    return sum(group["state"] != "REMOVED" for group in placement_group_table().values())


@pytest.fixture(scope="module")
def num_before() -> int:
    """Placement groups of supervisors that other tests killed; Ray keeps them for the driver."""
    return num_placement_groups()


def test_ranks_share_work_and_experts_and_lose_nothing_when_one_is_killed_or_stopped(
    checkpoint, requests, expected, num_before
):
    """This is one test, because starting four processes takes the longest."""
    groups = Groups.start(spec(checkpoint), num_groups=2, max_group_failures=3)
    try:
        ranks = rank_stats(groups, num_groups=2)
        assert [rank["rank"] for rank in ranks] == [0, 1]
        assert [rank["bytes"] for rank in ranks] == [shard_bytes(checkpoint, 2)] * 2
        assert asyncio.run(answer_all(groups, requests)) == expected
        for number, how in enumerate((signal.SIGKILL, signal.SIGSTOP)):
            victim = int(rank_stats(groups, num_groups=2)[1]["pid"])
            answers = asyncio.run(answer_all(groups, requests * 4, victim, how))
            assert answers == expected * 4
            while len(groups.status().failures) == number:
                time.sleep(0.05)
        killed, stopped = groups.status().failures
        assert "group 0 (generation 0)" in killed
        assert re.search(r"group 0 \(generation 1\), rank 1: silent for 3 s", stopped)
        assert num_placement_groups() == num_before + 2
    finally:
        groups.close()
    assert num_placement_groups() == num_before


def shard_bytes(checkpoint, num_ranks: int) -> float:
    """Return the bytes of a rank's parameters: all that are no experts, and its experts."""
    parameters = dict(Engine.from_checkpoint(checkpoint, CONFIG).model.named_parameters())
    whole = sum(p.nbytes for p in parameters.values())
    in_experts = sum(p.nbytes for name, p in parameters.items() if ".experts." in name)
    return whole - in_experts + in_experts / num_ranks


def test_a_group_of_which_one_rank_cannot_load_does_not_start(checkpoint, num_before):
    def factory(rank_spec):
        if rank_spec.rank == 1:
            raise ValueError("this disk has no such file")
        return MarkedEngine(checkpoint, rank_spec)

    wanted = GroupSpec(engine_factory=factory, num_ranks=2, num_cpus_per_rank=0.25)
    with pytest.raises(GroupError, match="this disk has no such file"):
        Groups.start(wanted, num_groups=1, max_group_failures=5)
    assert num_placement_groups() == num_before


def test_a_group_that_does_not_fit_one_node_says_what_to_do(checkpoint, num_before):
    wanted = spec(checkpoint, num_cpus_per_rank=3, resources_timeout_s=1)
    with pytest.raises(GroupError, match=r"2 times 3 CPU on one node.*has 4 CPU.*several nodes"):
        Groups.start(wanted, num_groups=1, max_group_failures=5)
    assert num_placement_groups() == num_before
