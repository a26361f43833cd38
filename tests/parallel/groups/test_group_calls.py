"""Calls of ranks that are gone, by each exception of Ray. Ranks are fakes, and no Ray runs."""

import asyncio
import itertools
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
from parallel.groups.nodes import Node
from parallel.groups.spec import GroupSpec
from parallel.groups.turns import NOTHING, Ended
from parallel.ranks.worker import DeadEngineError, RankHealth


class FakeSupervisor:
    """Notes the calls of a client, and grants all leases."""

    def __init__(self):
        self.calls = []
        self.numbers = itertools.count(1)
        self.room = asyncio.Semaphore(2)
        self.acquire = SimpleNamespace(remote=self._acquire)
        self.take_turn = SimpleNamespace(remote=self._take_turn)
        self.release = SimpleNamespace(remote=self._release)

    async def _acquire(self, client, num_tokens, *, exclusive, node_id, ended):
        self.calls.append(("lease", ended))
        return next(self.numbers), group_of(ActorDiedError())

    async def _take_turn(self, client, node_id, num_requests, num_tokens, *, ended):
        self.calls.append(("turn", ended))
        self._give_room(ended.turns)
        await self.room.acquire()
        number = next(self.numbers)
        return number, node_id, (10 * number, group_of(ActorDiedError())) if num_tokens else None

    def _release(self, *leases, turns):
        self.calls.append(("end", Ended(leases, turns)))
        self._give_room(turns)

    def _give_room(self, turns):
        for _ in turns:
            self.room.release()


@pytest.fixture
def supervised(monkeypatch):
    context = SimpleNamespace(
        get_worker_id=lambda: "worker", get_actor_id=lambda: "actor", get_node_id=lambda: "node"
    )
    monkeypatch.setattr(client.ray, "get_runtime_context", lambda: context)
    supervisor = FakeSupervisor()
    return supervisor, client.Groups(supervisor)


async def use_turn(groups, seconds=0.0):
    async with groups.turn(1, 5) as turn, turn.lease(5):
        await asyncio.sleep(seconds)


def test_ends_travel_with_the_next_turn_while_others_are_held(supervised):
    supervisor, groups = supervised

    async def use():
        async with groups.turn(1):
            await use_turn(groups)
            await use_turn(groups)

    asyncio.run(use())
    # One call a batch; the last end of the process is told at once.
    assert supervisor.calls == [
        ("turn", NOTHING),
        ("turn", NOTHING),
        ("turn", Ended((20,), (2,))),
        ("end", Ended((30,), (3, 1))),
    ]


def test_ends_wait_for_the_next_call_for_a_moment_only(supervised, monkeypatch):
    supervisor, groups = supervised
    monkeypatch.setattr(client, "_RELEASE_AFTER_S", 0.01)

    async def use():
        async with groups.turn(1):
            await use_turn(groups)
            while len(supervisor.calls) < 3:
                await asyncio.sleep(0.01)

    asyncio.run(use())
    assert supervisor.calls[2:] == [("end", Ended((20,), (2,))), ("end", Ended((), (1,)))]


def test_room_for_which_the_next_turn_waits_is_given_at_once(supervised, monkeypatch):
    supervisor, groups = supervised
    monkeypatch.setattr(client, "_RELEASE_AFTER_S", 1e9)

    async def use():
        await asyncio.wait_for(asyncio.gather(*(use_turn(groups, 0.01) for _ in range(20))), 30)

    asyncio.run(use())
    ended = [each for _, each in supervisor.calls]
    assert sorted(number for each in ended for number in each.turns) == [*range(1, 21)]
    assert sorted(number for each in ended for number in each.leases) == [*range(10, 210, 10)]


def test_the_last_end_of_a_process_is_told_at_once(supervised):
    supervisor, groups = supervised

    async def use():
        async with groups.lease(1):
            pass
        await use_turn(groups)

    asyncio.run(use())
    assert supervisor.calls[1::2] == [("end", Ended((1,), ())), ("end", Ended((20,), (2,)))]


def test_the_lease_of_a_turn_is_used_once_and_never_for_a_row_alone(supervised):
    supervisor, groups = supervised

    async def use():
        async with groups.turn(1, 5) as turn, turn.lease(5), turn.lease(5):
            pass
        async with groups.turn(1, 5) as turn, turn.lease(5, exclusive=True):
            pass

    asyncio.run(use())
    assert supervisor.calls == [
        ("turn", NOTHING),
        ("lease", NOTHING),
        ("end", Ended((2, 10), (1,))),
        ("turn", NOTHING),
        ("lease", Ended((30,), ())),  # the row must not wait for its own turn's lease
        ("end", Ended((4,), (3,))),
    ]


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
