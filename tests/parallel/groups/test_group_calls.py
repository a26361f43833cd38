"""Calls of ranks that are gone, by each exception of Ray. Ranks are fakes, and no Ray runs."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    OwnerDiedError,
    RaySystemError,
)

from parallel.groups.errors import DeadGroupError
from parallel.groups.group import EngineGroup
from parallel.groups.nodes import Node
from parallel.groups.spec import GroupSpec
from parallel.ranks.worker import DeadEngineError, RankHealth


class Answer:
    """The answer of a call that fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __await__(self):
        raise self.error
        yield


def group_of(error: Exception) -> EngineGroup:
    call = SimpleNamespace(remote=lambda *_: Answer(error))
    rank = SimpleNamespace(generate=call, expert_load=call)
    return EngineGroup(3, 1, cast("Any", None), (rank, rank))


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(DeadEngineError("no memory on the device"), id="engine"),
        pytest.param(ActorDiedError(), id="process"),
        pytest.param(OutOfMemoryError("Ray killed this worker"), id="memory"),
        pytest.param(ActorUnavailableError("cannot be reached", None), id="connection"),
        pytest.param(NodeDiedError("its node died"), id="node"),
        pytest.param(OwnerDiedError("00" * 28, b"", ""), id="answer"),
    ],
)
def test_whoever_asks_a_rank_that_is_gone_must_ask_another_group(error):
    with pytest.raises(DeadGroupError, match=r"group 3 \(generation 1\), rank 1: ."):
        asyncio.run(group_of(error).generate("client", [], rank=1))


def test_what_is_wrong_with_the_program_is_no_death_of_a_group():
    with pytest.raises(RaySystemError):
        asyncio.run(
            group_of(RaySystemError(ValueError("cannot be pickled"))).generate("client", [])
        )


def test_the_load_of_a_group_that_is_gone_cannot_be_had():
    with pytest.raises(DeadGroupError, match="rank 0"):
        asyncio.run(group_of(ActorDiedError()).expert_load())


def test_a_look_that_is_cancelled_at_the_moment_of_the_answer_ends():
    async def main():
        answer = asyncio.get_running_loop().create_future()
        rank = SimpleNamespace(health=SimpleNamespace(remote=lambda: answer))
        group = EngineGroup(3, 1, cast("Any", None), (rank,))
        spec = GroupSpec(engine_factory=lambda _: pytest.fail("nobody loads an engine here"))
        look = asyncio.ensure_future(group.check(spec))
        await asyncio.sleep(0)
        answer.set_result(RankHealth(busy_s=0.0, stats={}))
        look.cancel()
        with pytest.raises(asyncio.CancelledError):
            await look

    asyncio.run(main())


def test_a_death_names_the_node_of_its_rank():
    group = replace(
        group_of(ActorDiedError()),
        nodes=(Node("6", "node-6, 10.0.0.6"), Node("7", "node-7, 10.0.0.7")),
    )
    with pytest.raises(DeadGroupError, match=r"rank 1: .* \(on node-7, 10\.0\.0\.7\)$"):
        asyncio.run(group.generate("client", [], rank=1))
