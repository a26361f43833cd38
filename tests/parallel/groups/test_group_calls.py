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

from parallel.groups import client
from parallel.groups.errors import DeadGroupError
from parallel.groups.group import EngineGroup
from parallel.groups.spec import GroupSpec
from parallel.ranks.worker import DeadEngineError, RankHealth


class FakeSupervisor:
    """Notes the calls of a client, and grants all leases."""

    def __init__(self):
        self.calls = []
        self.acquire = SimpleNamespace(remote=self._acquire)
        self.release = SimpleNamespace(remote=lambda *numbers: self.calls.append(numbers))

    async def _acquire(self, client, num_tokens, *, exclusive, ended):
        self.calls.append((num_tokens, ended))
        return num_tokens, group_of(ActorDiedError())


@pytest.fixture
def supervised(monkeypatch):
    context = SimpleNamespace(get_worker_id=lambda: "worker", get_actor_id=lambda: "actor")
    monkeypatch.setattr(client.ray, "get_runtime_context", lambda: context)
    supervisor = FakeSupervisor()
    return supervisor, client.Groups(supervisor)


def test_the_end_of_a_lease_travels_with_the_next_one(supervised, monkeypatch):
    supervisor, groups = supervised
    monkeypatch.setattr(client, "_RELEASE_AFTER_S", 0.01)

    async def use():
        for number in (1, 2, 3):
            async with groups.lease(number):
                pass
        await asyncio.sleep(0.1)

    asyncio.run(use())
    assert supervisor.calls == [(1, []), (2, [1]), (3, [2]), (3,)]


def test_the_end_of_a_lease_waits_for_the_next_one_for_a_moment_only(supervised, monkeypatch):
    supervisor, groups = supervised
    monkeypatch.setattr(client, "_RELEASE_AFTER_S", 0.01)

    async def use():
        async with groups.lease(1), groups.lease(2):
            pass
        await asyncio.sleep(0.1)
        async with groups.lease(3):
            pass

    asyncio.run(use())
    assert supervisor.calls == [(1, []), (2, []), (2, 1), (3, [])]


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
    group = replace(group_of(ActorDiedError()), nodes=("node-6, 10.0.0.6", "node-7, 10.0.0.7"))
    with pytest.raises(DeadGroupError, match=r"rank 1: .* \(on node-7, 10\.0\.0\.7\)$"):
        asyncio.run(group.generate("client", [], rank=1))
