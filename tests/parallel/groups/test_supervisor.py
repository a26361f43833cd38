"""Which client gets which group, and what follows failures. Groups are fakes, and no Ray runs."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RaySystemError

from parallel.groups import leases
from parallel.groups import supervisor as module
from parallel.groups.errors import DeadGroupError, GroupError, NoRoomError
from parallel.groups.golden import golden_requests
from parallel.groups.leases import Client
from parallel.groups.nodes import Node
from parallel.groups.spec import GroupSpec
from parallel.groups.supervisor import Supervisor
from parallel.ranks.worker import RankHealth

SPEC = GroupSpec(
    heartbeat_s=0.005,
    failures_at_once=3,
    engine_factory=lambda _: pytest.fail("nobody loads an engine here"),
)
ONE, OTHER = Client("process 1", "actor 1"), Client("process 2", "actor 2")


@dataclass(eq=False)
class Groups:
    """Makes the fake groups. `starts` holds the errors to raise, in order; None is a good start."""

    starts: list[Exception | None] = field(default_factory=list)
    closed: list[tuple[int, int]] = field(default_factory=list)
    killed: list[tuple[int, int]] = field(default_factory=list)  # but their resources are kept
    cancelled: list[str] = field(default_factory=list)
    hanging: set[int] = field(default_factory=set)  # generations that do not answer
    gates: dict[int, asyncio.Event] = field(default_factory=dict)  # of groups that start late
    moved: list[tuple[int, int]] = field(default_factory=list)  # and keep what they have
    num_looks: int = 0  # at the nodes
    nodes: set[str] = field(default_factory=lambda: {"node 1"})  # of the cluster
    ending: dict[str, float] = field(default_factory=dict)  # nodes -> seconds left
    where: dict[int, str] = field(default_factory=dict)  # the node of each group
    num_steps: int = 7  # of any group
    pace: int = 0  # steps between two health checks

    def living_nodes(self):
        self.num_looks += 1
        return set(self.nodes)

    async def looked(self):
        """Wait until somebody has seen the nodes as they are now."""
        enough = self.num_looks + 2
        while self.num_looks < enough:
            await asyncio.sleep(0.001)

    def ending_nodes(self):
        return dict(self.ending)

    async def start(self, spec, group_id, address, generation=0):
        return await self.build(group_id, generation)

    async def build(self, group_id, generation):
        await asyncio.sleep(0)
        if group_id in self.gates:
            await self.gates[group_id].wait()
        error = self.starts.pop(0) if self.starts else None
        if error is not None:
            raise error
        node_id = self.where.get(group_id)
        nodes = () if node_id is None else (Node(node_id, f"host of {node_id}"),)
        return Group(self, group_id, generation, nodes)


@dataclass(eq=False)
class Group:
    groups: Groups
    group_id: int
    generation: int
    nodes: tuple[Node, ...] = ()

    async def check(self, spec):
        if self.generation in self.groups.hanging:
            raise DeadGroupError(f"rank 1 of generation {self.generation} hangs")
        self.groups.num_steps += self.groups.pace
        return [RankHealth(busy_s=0.0, stats={"steps": self.groups.num_steps})]

    async def expert_load(self):
        return {1: np.array([self.generation, 10])}

    async def rebuild(self, spec, address, *, elsewhere=False):
        if elsewhere:
            self.groups.moved.append((self.group_id, self.generation))
        return await self.groups.build(self.group_id, self.generation + 1)

    def cancel_client(self, process_id):
        self.groups.cancelled.append(process_id)

    def kill(self):
        self.groups.killed.append((self.group_id, self.generation))

    def close(self):
        self.groups.closed.append((self.group_id, self.generation))


@pytest.fixture
def groups(monkeypatch):
    fakes = Groups()
    monkeypatch.setattr(module, "EngineGroup", fakes)
    monkeypatch.setattr(module, "_RETRY_AFTER_S", 0.0)
    monkeypatch.setattr(module, "_LOOK_FOR_NODES_S", 0.001)
    monkeypatch.setattr(module, "_LOOK_FOR_ENDS_S", 0.001)
    monkeypatch.setattr(leases, "_LOOK_AGAIN_S", 0.001)
    monkeypatch.setattr(module, "living_nodes", fakes.living_nodes)
    monkeypatch.setattr(module, "ending_nodes", fakes.ending_nodes)
    return fakes


def supervise(
    use: Callable[[Any], Awaitable[None]], num_groups: int = 1, max_group_failures: int = 3
) -> None:
    async def main():
        supervisor = Supervisor(SPEC, num_groups, max_group_failures)
        async with asyncio.timeout(5):
            await supervisor.start()
            await use(supervisor)
        await supervisor.close()

    asyncio.run(main())


async def until_ready(supervisor: Supervisor, num_ready: int) -> None:
    while (await supervisor.status()).num_ready != num_ready:
        await asyncio.sleep(0.001)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_group_with_the_fewest_tokens_on_lease_is_next(groups):
    async def use(supervisor):
        await settle()
        taken = [await supervisor.acquire(ONE, tokens, exclusive=False) for tokens in (50, 20, 20)]
        assert [group.group_id for _, group in taken] == [0, 1, 1]
        await supervisor.release(taken[0][0])
        _, group = await supervisor.acquire(ONE, 1, exclusive=False)
        assert group.group_id == 0

    supervise(use, num_groups=2)


def test_work_begins_with_the_first_group_and_others_join_as_they_come(groups):
    groups.gates = {1: asyncio.Event()}

    async def use(supervisor):
        assert (await supervisor.status()).num_ready == 1
        taken = [await supervisor.acquire(ONE, 10, exclusive=False) for _ in range(2)]
        assert [group.group_id for _, group in taken] == [0, 0]
        groups.gates[1].set()
        await settle()
        assert (await supervisor.status()).num_ready == 2
        _, group = await supervisor.acquire(ONE, 10, exclusive=False)
        assert group.group_id == 1

    supervise(use, num_groups=2)


def test_an_exclusive_lease_waits_for_an_empty_group_and_keeps_others_out(groups):
    async def use(supervisor):
        shared, _ = await supervisor.acquire(ONE, 10, exclusive=False)
        exclusive = asyncio.ensure_future(supervisor.acquire(OTHER, 10, exclusive=True))
        await settle()
        late = asyncio.ensure_future(supervisor.acquire(ONE, 10, exclusive=False))
        await settle()
        assert not exclusive.done()
        assert not late.done()
        await supervisor.release(shared)
        number, _ = await exclusive
        await settle()
        assert not late.done()
        await supervisor.release(number)
        await late

    supervise(use)


def test_a_cancelled_wait_for_an_exclusive_lease_lets_others_in_again(groups):
    async def use(supervisor):
        await supervisor.acquire(ONE, 10, exclusive=False)
        exclusive = asyncio.ensure_future(supervisor.acquire(OTHER, 10, exclusive=True))
        await settle()
        exclusive.cancel()
        await settle()
        await supervisor.acquire(ONE, 10, exclusive=False)

    supervise(use)


def test_a_reported_group_comes_back_as_the_next_generation_once(groups):
    async def use(supervisor):
        _, dead = await supervisor.acquire(ONE, 10, exclusive=False)
        for _ in range(3):
            await supervisor.report_failure(dead.group_id, dead.generation, "killed")
        _, group = await supervisor.acquire(ONE, 10, exclusive=False)
        await supervisor.report_failure(dead.group_id, dead.generation, "a late report")
        assert group.generation == 1
        status = await supervisor.status()
        assert (status.num_ready, status.failures) == (1, ("killed",))

    supervise(use)


def test_leases_of_a_dead_generation_do_not_weigh_on_the_next(groups):
    async def use(supervisor):
        await settle()
        for _ in range(2):
            await supervisor.acquire(ONE, 10, exclusive=False)
        await supervisor.report_failure(0, 0, "killed")
        await settle()
        _, group = await supervisor.acquire(ONE, 1, exclusive=True)
        assert (group.group_id, group.generation) == (0, 1)

    supervise(use, num_groups=2)


def test_too_many_failures_stop_everybody_with_the_last_reason(groups):
    async def use(supervisor):
        for generation in range(3):
            await supervisor.acquire(ONE, 10, exclusive=False)
            await supervisor.report_failure(0, generation, f"death {generation}")
            await settle()
        await supervisor.acquire(ONE, 10, exclusive=False)
        waiting = asyncio.ensure_future(supervisor.acquire(ONE, 10, exclusive=True))
        await settle()
        await supervisor.report_failure(0, 3, "the last straw")
        with pytest.raises(GroupError, match=r"4 times.*the last straw.*same command again"):
            await supervisor.acquire(ONE, 10, exclusive=False)
        with pytest.raises(GroupError, match="4 times"):
            await waiting

    supervise(use)


def test_a_group_that_fails_again_and_again_is_set_apart_and_keeps_its_resources(groups):
    async def use(supervisor):
        await settle()
        for generation in range(6):
            assert (await supervisor.status()).set_apart == {}
            await supervisor.report_failure(1, generation, f"death {generation} (on node-7)")
            await settle()
        status = await supervisor.status()
        (text,) = status.set_apart.values()
        assert "death 5 (on node-7); group 1 is set apart after 6 failures in a row" in text
        assert (status.num_ready, status.failures[-1]) == (2, text)
        assert groups.killed == [(1, 5)]
        assert groups.closed == []  # nobody else gets what it had
        taken = [await supervisor.acquire(ONE, 10, exclusive=False) for _ in range(4)]
        assert [group.group_id for _, group in taken] == [0, 2, 0, 2]
        # Its failures do not count against the others, which may have three each.
        for generation in range(3):
            for group_id in (0, 2):
                await supervisor.report_failure(group_id, generation, "killed")
            await settle()
            await supervisor.acquire(ONE, 10, exclusive=False)
        await supervisor.report_failure(0, 3, "killed")
        with pytest.raises(GroupError, match=r"13 times.*Before that: death 5 \(on node-7\)"):
            await supervisor.acquire(ONE, 10, exclusive=False)

    supervise(use, num_groups=3, max_group_failures=0)
    assert (1, 5) in groups.closed


def test_a_group_whose_starts_fail_is_set_apart_too(groups):
    async def use(supervisor):
        await settle()
        groups.starts = [GroupError(f"group 0 (on node-7) did not start: {n}") for n in range(5)]
        await supervisor.report_failure(0, 0, "killed")
        await settle()
        status = await supervisor.status()
        assert "(on node-7) did not start: 4; group 0 is set apart" in status.set_apart[0]
        assert (status.num_ready, groups.starts) == (1, [])

    supervise(use, num_groups=2)


def test_the_last_group_is_not_set_apart_but_stops_the_job(groups):
    spec = replace(SPEC, failures_at_once=8)

    async def main():
        supervisor = Supervisor(spec, 2, max_group_failures=0)
        await supervisor.start()
        await settle()
        for group_id, num_deaths in ((0, 6), (1, 8)):
            for generation in range(num_deaths):
                await supervisor.report_failure(group_id, generation, f"{group_id}.{generation}")
                await settle()
        assert [*(await supervisor.status()).set_apart] == [0]
        _, group = await supervisor.acquire(ONE, 10, exclusive=False)
        assert (group.group_id, group.generation) == (1, 8)
        await supervisor.report_failure(1, 8, "the last straw")
        with pytest.raises(GroupError, match=r"15 times.*: the last straw\. Before that: 0\.5"):
            await supervisor.acquire(ONE, 10, exclusive=False)
        await supervisor.close()
        assert (0, 5) in groups.closed

    asyncio.run(main())


def test_512_groups_that_fail_as_often_as_allowed_work_for_a_week(groups):
    """A fake clock goes on by a week; each group dies twice a day, in a row for nobody."""
    now = 0.0

    async def main():
        nonlocal now
        spec = replace(SPEC, heartbeat_s=3600.0, failures_at_once=16)
        supervisor = Supervisor(spec, 512, max_group_failures=2, clock=lambda: now)
        await supervisor.start()
        deaths = [(day, group_id) for day in range(14) for group_id in range(512)]
        for half_day, group_id in deaths:
            await settle_one()
            now += 43_200 / 512
            await supervisor.report_failure(group_id, half_day, "its node was taken away")
        await settle()
        status = await supervisor.status()
        assert (status.num_ready, len(status.failures)) == (512, 7168)
        assert status.set_apart == {}
        taken = [await supervisor.acquire(ONE, 10, exclusive=False) for _ in range(4096)]
        assert {group.group_id for _, group in taken} == {*range(512)}
        # The same week does not excuse a fault that hits all at once; one of its deaths is recent.
        for generation in range(14, 18):
            for group_id in range(512):
                await supervisor.report_failure(group_id, generation, "no memory")
            await settle()
        with pytest.raises(GroupError, match=r"8704 times, more than the allowed 1536 at once"):
            await supervisor.acquire(ONE, 10, exclusive=False)
        await supervisor.close()

    async def settle_one() -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(main())


def test_a_failure_before_anything_worked_is_the_answer_to_start(groups):
    groups.starts = [GroupError("no such checkpoint"), NoRoomError("no GPU")]

    async def use(supervisor):
        pytest.fail("it started")

    with pytest.raises(GroupError, match="no such checkpoint"):
        supervise(use, num_groups=2)


def test_a_start_that_breaks_in_an_unforeseen_way_is_the_answer_to_start(groups):
    groups.starts = [RaySystemError(ValueError("cannot be pickled"))]

    async def use(supervisor):
        pytest.fail("it started")

    with pytest.raises(GroupError, match=r"RaySystemError: .*cannot be pickled"):
        supervise(use)


def test_a_rebuild_that_breaks_in_an_unforeseen_way_leaves_nobody_waiting(groups):
    async def use(supervisor):
        groups.starts = [OSError("too many open files")]
        await supervisor.report_failure(0, 0, "killed")
        with pytest.raises(GroupError, match="OSError: too many open files"):
            await supervisor.acquire(ONE, 10, exclusive=False)

    supervise(use)


def test_a_rebuild_is_tried_again_and_each_failure_counts(groups):
    async def use(supervisor):
        groups.starts = [GroupError("died while loading"), None]
        await supervisor.report_failure(0, 0, "killed")
        _, group = await supervisor.acquire(ONE, 10, exclusive=False)
        assert group.generation == 1
        assert (await supervisor.status()).failures == ("killed", "died while loading")

    supervise(use)


def test_a_group_without_a_place_is_given_up_while_others_work(groups):
    async def use(supervisor):
        await settle()
        groups.starts = [NoRoomError("its node is gone")]
        await supervisor.report_failure(0, 0, "killed")
        await settle()
        status = await supervisor.status()
        assert (status.num_ready, status.num_groups) == (1, 2)
        assert "its node is gone" in status.failures[-1]
        assert groups.closed == [(0, 0)]
        assert (await supervisor.acquire(ONE, 10, exclusive=True))[1].group_id == 1

    supervise(use, num_groups=2)


def test_a_group_without_a_place_is_given_up_while_others_load(groups):
    groups.gates = {1: asyncio.Event()}
    groups.starts = [NoRoomError("no room for one more")]

    async def main():
        supervisor = Supervisor(SPEC, num_groups=2, max_group_failures=3)
        start = asyncio.ensure_future(supervisor.start())
        await settle()
        assert not start.done()
        groups.gates[1].set()
        async with asyncio.timeout(5):
            await start
            assert (await supervisor.acquire(ONE, 10, exclusive=False))[1].group_id == 1
        status = await supervisor.status()
        assert status.num_ready == 1
        assert status.failures == ("no room for one more (the other groups go on)",)
        await supervisor.close()

    asyncio.run(main())


def test_a_node_that_comes_later_gets_the_groups_that_had_no_place(groups):
    async def use(supervisor):
        await settle()
        groups.starts = [NoRoomError("its node is gone"), NoRoomError("its node is gone")]
        for group_id in (0, 1):
            await supervisor.report_failure(group_id, 0, "killed")
        await groups.looked()
        assert (await supervisor.status()).num_ready == 1
        assert groups.closed == [(0, 0), (1, 0)]
        groups.starts = [None, NoRoomError("the new node is full")]
        groups.nodes = {"node 1", "node 2"}
        await until_ready(supervisor, 2)
        assert len((await supervisor.status()).failures) == 4  # a group without room is told once
        groups.nodes = {"node 1"}
        await groups.looked()
        assert (await supervisor.status()).num_ready == 2
        groups.nodes = {"node 1", "node 2"}  # a node that went and comes again is new
        await until_ready(supervisor, 3)
        taken = [await supervisor.acquire(ONE, 10, exclusive=False) for _ in range(3)]
        assert {(group.group_id, group.generation) for _, group in taken} == {
            (0, 1), (1, 1), (2, 0)
        }  # fmt: skip

    supervise(use, num_groups=3)


def test_a_node_that_comes_later_gets_a_group_that_was_set_apart(groups):
    async def use(supervisor):
        await settle()
        for generation in range(6):
            await supervisor.report_failure(0, generation, "killed")
            await settle()
        assert [*(await supervisor.status()).set_apart] == [0]
        await groups.looked()
        assert (await supervisor.status()).num_ready == 1
        groups.nodes = {"node 1", "node 2"}
        await until_ready(supervisor, 2)
        assert groups.moved == [(0, 5)]  # what it had on the bad node stays reserved
        assert groups.closed == []
        assert (await supervisor.status()).set_apart == {}
        _, group = await supervisor.acquire(ONE, 10, exclusive=False)
        assert (group.group_id, group.generation) == (0, 6)
        for generation in range(6, 12):  # the new node is no better
            await supervisor.report_failure(0, generation, "killed")
            await settle()
        assert [*(await supervisor.status()).set_apart] == [0]

    supervise(use, num_groups=2)
    assert {(0, 5), (0, 11), (1, 0)} <= {*groups.closed}


def test_closing_while_groups_wait_for_a_node_ends_the_wait(groups):
    async def use(supervisor):
        await settle()
        groups.starts = [NoRoomError("its node is gone")]
        await supervisor.report_failure(0, 0, "killed")
        await groups.looked()
        await supervisor.close()
        assert not supervisor._tasks

    supervise(use, num_groups=2)


def test_groups_of_which_none_has_a_place_do_not_start(groups):
    groups.starts = [NoRoomError("no room"), NoRoomError("no room either")]

    async def use(supervisor):
        pytest.fail("it started")

    with pytest.raises(GroupError, match="no room either"):
        supervise(use, num_groups=2)


def test_a_restarted_client_takes_over_what_its_dead_process_had(groups):
    async def use(supervisor):
        await supervisor.acquire(ONE, 10, exclusive=True)
        await supervisor.acquire(Client("a later process", "actor 1"), 10, exclusive=True)
        assert groups.cancelled == ["process 1"]

    supervise(use)


def test_a_client_that_died_while_it_waited_gets_no_lease(groups):
    async def use(supervisor):
        number, _ = await supervisor.acquire(OTHER, 10, exclusive=True)
        dead = asyncio.ensure_future(supervisor.acquire(ONE, 10, exclusive=True))
        await settle()
        later = Client("a later process", "actor 1")
        successor = asyncio.ensure_future(supervisor.acquire(later, 10, exclusive=True))
        await settle()
        await supervisor.release(number)
        with pytest.raises(GroupError, match="successor"):
            await dead
        await successor

    supervise(use)


def test_closing_closes_every_group_and_refuses_leases(groups):
    async def use(supervisor):
        await settle()
        await supervisor.close()
        assert sorted(groups.closed) == [(0, 0), (1, 0)]
        with pytest.raises(GroupError, match="closed"):
            await supervisor.acquire(ONE, 10, exclusive=False)

    supervise(use, num_groups=2)


def test_a_group_that_hangs_is_replaced_though_no_client_complains(groups):
    groups.hanging = {0}

    async def use(supervisor):
        while (await supervisor.status()).failures != ("rank 1 of generation 0 hangs",):
            await asyncio.sleep(0.001)
        _, group = await supervisor.acquire(ONE, 10, exclusive=False)
        assert group.generation == 1
        while not (status := await supervisor.status()).rank_stats:
            await asyncio.sleep(0.001)
        assert status.rank_stats == {0: ({"steps": 7},)}

    supervise(use)


def test_the_load_of_dead_generations_counts_up_to_its_last_reading(groups, monkeypatch):
    monkeypatch.setattr("parallel.groups.monitor._LOAD_INTERVAL_S", 0.001)

    async def use(supervisor):
        for generation in range(3):
            await supervisor.acquire(ONE, 10, exclusive=False)
            await asyncio.sleep(0.05)
            await supervisor.report_failure(0, generation, "killed")
        await supervisor.acquire(ONE, 10, exclusive=False)
        load = await supervisor.expert_load()
        assert {layer: tokens.tolist() for layer, tokens in load.items()} == {1: [6, 40]}

    supervise(use)


def test_a_group_that_drifts_is_replaced(groups, monkeypatch):
    checked = []

    async def check(golden, group):
        checked.append(group.generation)
        if len(checked) == 2:
            raise DeadGroupError("the golden prompts drift")

    monkeypatch.setattr(module.GoldenPrompts, "check", check)
    spec = replace(SPEC, golden=tuple(golden_requests(100)), golden_every_steps=100)
    monkeypatch.setattr("tests.parallel.groups.test_supervisor.SPEC", spec)

    async def use(supervisor):
        await asyncio.sleep(20 * SPEC.heartbeat_s)
        assert checked == [0]  # at the start, and not again while it does not step
        groups.pace = 10
        while not (status := await supervisor.status()).failures:
            await asyncio.sleep(0.001)
        assert status.failures == ("the golden prompts drift",)
        assert groups.num_steps >= 100
        _, group = await supervisor.acquire(ONE, 10, exclusive=False)
        assert group.generation == 1

    supervise(use)


def test_a_group_that_drifts_from_the_start_never_serves(groups, monkeypatch):
    async def check(golden, group):
        raise DeadGroupError("the golden prompts drift")

    monkeypatch.setattr(module.GoldenPrompts, "check", check)

    async def use(supervisor):
        pytest.fail("it started")

    with pytest.raises(GroupError, match="golden prompts drift"):
        supervise(use)
    assert groups.closed == [(0, 0)]


@pytest.mark.parametrize(
    "generation", [pytest.param(0, id="a start"), pytest.param(1, id="a rebuild")]
)
def test_closing_while_the_golden_prompts_are_asked_closes_the_group(
    groups, monkeypatch, generation
):
    asked = asyncio.Event()

    async def check(golden, group):
        if group.generation == generation:
            asked.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(module.GoldenPrompts, "check", check)

    async def main():
        supervisor = Supervisor(SPEC, num_groups=1, max_group_failures=3)
        start = asyncio.ensure_future(supervisor.start())
        if generation:
            await start
            await supervisor.report_failure(0, 0, "killed")
        async with asyncio.timeout(5):
            await asked.wait()
            await supervisor.close()
        await asyncio.gather(start, return_exceptions=True)
        assert (0, generation) in groups.closed

    asyncio.run(main())


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0.001)


def test_a_group_answers_what_it_has_while_its_next_generation_starts_on_another_node(groups):
    groups.where = {0: "node 1", 1: "node 2"}

    async def use(supervisor):
        await until_ready(supervisor, 2)
        near = partial(supervisor.acquire, ONE, 10, exclusive=False, node_id="node 1")
        number, old = await near()
        assert (old.group_id, old.generation) == (0, 0)
        groups.where[0] = "node 3"
        groups.ending = {"node 1": 60.0}
        await until_moved(supervisor, 1)
        await until_ready(supervisor, 2)
        assert groups.closed == []  # somebody has it
        taken = [await near() for _ in range(2)]
        assert {(group.group_id, group.generation) for _, group in taken} == {(0, 1), (1, 0)}
        await supervisor.release(number)
        await until(lambda: groups.closed == [(0, 0)])
        status = await supervisor.status()
        assert (status.failures, status.num_moved) == ((), 1)

    supervise(use, num_groups=2, max_group_failures=0)


def test_what_a_node_has_not_answered_at_its_end_is_sent_again_and_nobody_is_blamed(groups):
    groups.where = {0: "node 1"}

    async def use(supervisor):
        await supervisor.acquire(ONE, 10, exclusive=False)
        groups.where[0] = "node 2"
        groups.ending = {"node 1": 0.05}
        await until(lambda: groups.closed == [(0, 0)])  # though somebody has it
        assert not await supervisor.report_failure(0, 0, "killed")
        _, group = await supervisor.acquire(ONE, 10, exclusive=False)
        assert (group.generation, group.nodes[0].node_id) == (1, "node 2")
        assert (await supervisor.status()).failures == ()
        assert await supervisor.report_failure(0, 1, "killed")

    supervise(use)


def test_who_waits_to_have_a_group_alone_gets_another_when_it_is_moved(groups):
    groups.where = {0: "node 1"}

    async def use(supervisor):
        await supervisor.acquire(ONE, 10, exclusive=False)
        alone = asyncio.ensure_future(supervisor.acquire(OTHER, 10, exclusive=True))
        await settle()
        assert not alone.done()
        groups.where[0] = "node 2"
        groups.ending = {"node 1": 60.0}
        _, group = await alone
        assert group.generation == 1

    supervise(use)


def test_a_moved_group_for_which_no_node_has_room_is_built_when_a_node_comes(groups):
    groups.where = {0: "node 1", 1: "node 2"}

    async def use(supervisor):
        await until_ready(supervisor, 2)
        groups.starts = [NoRoomError("group 0 needs 1 GPU")]
        groups.ending = {"node 1": 0.0}
        await until_ready(supervisor, 1)
        await groups.looked()
        groups.nodes, groups.ending, groups.where[0] = {"node 2", "node 3"}, {}, "node 3"
        await until_ready(supervisor, 2)
        (told,) = (await supervisor.status()).failures
        assert told == "group 0 needs 1 GPU (the other groups go on)"

    supervise(use, num_groups=2)


def test_all_groups_that_are_moved_are_closed_with_the_others(groups):
    groups.where = {0: "node 1"}

    async def use(supervisor):
        await supervisor.acquire(ONE, 10, exclusive=False)
        groups.where[0] = "node 2"
        groups.ending = {"node 1": 60.0}
        await until_moved(supervisor, 1)
        await until_ready(supervisor, 1)

    supervise(use)
    assert sorted(groups.closed) == [(0, 0), (0, 1)]


async def until_moved(supervisor: Supervisor, num_moved: int) -> None:
    while (await supervisor.status()).num_moved != num_moved:
        await asyncio.sleep(0.001)


def test_a_later_process_of_a_client_takes_over_the_turns_of_the_earlier_one(groups):
    groups.where = {0: "node 1"}

    async def use(supervisor):
        await supervisor.take_turn(ONE, "node 1", SPEC.max_requests)
        waiting = asyncio.ensure_future(supervisor.take_turn(OTHER, "node 1", 1))
        await settle()
        assert not waiting.done()
        await supervisor.take_turn(Client("a later process", "actor 1"), "node 1", 1)
        assert (await waiting)[1] == "node 1"

    supervise(use)


def test_the_room_of_a_node_that_ends_goes_to_where_its_group_is_moved(groups):
    groups.where = {0: "node 1"}

    async def use(supervisor):
        number, node_id = await supervisor.take_turn(ONE, "node 1", 1)
        assert node_id == "node 1"
        groups.where[0] = "node 2"
        groups.ending = {"node 1": 60.0}
        await until_moved(supervisor, 1)
        assert (await supervisor.take_turn(ONE, "node 1", 1))[1] == "node 2"
        await supervisor.end_turn(number)  # of room that is gone

    supervise(use)
