"""Leases against a slow twin, which adds up all leases for every choice; and what they cost.

Groups are fakes, and no Ray runs.
"""

import asyncio
import math
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import pytest

from parallel.groups import supervisor as module
from parallel.groups.errors import GroupError
from parallel.groups.group import EngineGroup
from parallel.groups.leases import Client, Leases
from parallel.groups.least_loaded import LeastLoaded
from parallel.groups.nodes import Node
from parallel.groups.supervisor import Supervisor
from tests.parallel.groups.test_supervisor import SPEC, Groups

DRIVER = Client("driver", None)


@dataclass(eq=False)
class FakeGroup:
    group_id: int
    generation: int
    nodes: tuple[Node, ...] = ()


@dataclass
class Wish:
    number: int
    client: Client
    num_tokens: int
    exclusive: bool
    node_id: str | None


@dataclass
class Twin:
    """Says who must have which group: it remembers every lease and looks at all of them."""

    running: dict[int, int] = field(default_factory=dict)  # group -> generation
    nodes: dict[int, set[str]] = field(default_factory=dict)  # of each running group
    held: dict[int, tuple[Wish, int, int]] = field(default_factory=dict)  # wish -> group, gen.
    waiting: list[Wish] = field(default_factory=list)
    emptying: dict[int, Wish] = field(default_factory=dict)  # group -> who waits to have it alone
    latest: dict[str | None, Client] = field(default_factory=dict)  # by actor
    refused: set[int] = field(default_factory=set)

    def num_tokens(self, group_id: int) -> int:
        generation = self.running[group_id]
        of = [wish for wish, *group in self.held.values() if group == [group_id, generation]]
        return sum(wish.num_tokens for wish in of)

    def is_free(self, group_id: int) -> bool:
        alone = [group for wish, group, _ in self.held.values() if wish.exclusive]
        return group_id not in self.emptying and group_id not in alone

    def serve(self) -> None:
        for group_id in [*self.emptying]:
            if group_id not in self.running:
                self.waiting.insert(0, self.emptying.pop(group_id))
            elif not self.num_tokens(group_id):
                self.give(self.emptying.pop(group_id), group_id)
        while self.waiting:
            free = [group_id for group_id in sorted(self.running) if self.is_free(group_id)]
            if not free:
                return
            wish = self.waiting.pop(0)
            group_id = self.choose(wish, free)
            if wish.exclusive and self.num_tokens(group_id):
                self.emptying[group_id] = wish
            else:
                self.give(wish, group_id)

    def choose(self, wish: Wish, free: list[int]) -> int:
        least = min(free, key=self.num_tokens)
        if not wish.exclusive:
            near = [group_id for group_id in free if wish.node_id in self.nodes[group_id]]
            nearest = min(near, key=self.num_tokens, default=least)
            if self.num_tokens(nearest) <= 2 * self.num_tokens(least) + wish.num_tokens:
                return nearest
        return least

    def give(self, wish: Wish, group_id: int) -> None:
        if wish.client.actor_id and self.latest[wish.client.actor_id] != wish.client:
            self.refused.add(wish.number)
        else:
            self.held[wish.number] = (wish, group_id, self.running[group_id])


class Story:
    """Does the same random things to the leases and to their twin."""

    def __init__(self, seed: int, num_groups: int) -> None:
        self.chance = random.Random(seed)
        self.leases, self.twin = Leases(num_groups), Twin()
        self.generations = [0] * num_groups
        self.tasks: dict[int, asyncio.Task[tuple[int, EngineGroup]]] = {}
        self.processes = [0] * 4  # of each actor

    def client(self, actor: int) -> Client:
        process = self.processes[actor]
        return Client(f"process {process} of {actor}", f"actor {actor}")

    def acquire(self) -> None:
        actor = self.chance.randrange(len(self.processes))
        client = self.client(actor)
        exclusive = self.chance.random() < 0.25
        node_id = self.chance.choice([None, "node 0", "node 1", "node 2", "node 9"])
        wish = Wish(len(self.tasks), client, self.chance.randint(1, 5), exclusive, node_id)
        self.leases.register(client)
        asked = self.leases.acquire(client, wish.num_tokens, exclusive=exclusive, node_id=node_id)
        self.tasks[wish.number] = asyncio.ensure_future(asked)
        self.twin.latest[client.actor_id] = client
        self.twin.waiting.append(wish)

    def end(self) -> None:
        if self.twin.held:
            number = self.chance.choice(sorted(self.twin.held))
            lease, _ = self.tasks[number].result()
            for _ in range(2):  # the second time is no error
                self.leases.end(lease)
            del self.twin.held[number]

    def die(self) -> None:
        if self.twin.running:
            group_id = self.chance.choice(sorted(self.twin.running))
            self.leases.shut(group_id)
            del self.twin.running[group_id]

    def come_back(self) -> None:
        group_id = self.chance.randrange(len(self.generations))
        if group_id not in self.twin.running:
            self.generations[group_id] += 1
            nodes = {f"node {self.chance.randrange(4)}" for _ in range(2)}
            ranks = tuple(Node(node_id, "") for node_id in nodes)
            group = FakeGroup(group_id, self.generations[group_id], ranks)
            self.leases.open(cast("EngineGroup", group))
            self.twin.nodes[group_id] = nodes
            self.twin.running[group_id] = group.generation

    def cancel(self) -> None:
        waiting = [*self.twin.waiting, *self.twin.emptying.values()]
        if waiting:
            wish = self.chance.choice(waiting)
            self.tasks[wish.number].cancel()
            self.twin.waiting = [each for each in self.twin.waiting if each is not wish]
            for group_id, each in [*self.twin.emptying.items()]:
                if each is wish:
                    del self.twin.emptying[group_id]

    def restart(self) -> None:
        actor = self.chance.randrange(len(self.processes))
        name = f"actor {actor}"
        earlier = self.client(actor)
        self.processes[actor] += 1
        later = self.client(actor)
        known = self.twin.latest.get(name)
        assert self.leases.register(later) == (earlier if known else None)
        self.twin.latest[name] = later
        # Each of its leases ends by itself, and whoever waits is served in between.
        for number in [
            number for number, held in self.twin.held.items() if held[0].client == earlier
        ]:
            del self.twin.held[number]
            self.twin.serve()

    async def check(self) -> None:
        self.twin.serve()
        for _ in range(3):
            await asyncio.sleep(0)
        for number, task in self.tasks.items():
            if task.done() and not task.cancelled() and task.exception() is not None:
                assert number in self.twin.refused
            elif number in self.twin.held:
                _, group = task.result()
                assert [group.group_id, group.generation] == [*self.twin.held[number][1:]]
        still = {wish.number for wish in (*self.twin.waiting, *self.twin.emptying.values())}
        assert still == {number for number, task in self.tasks.items() if not task.done()}


@pytest.mark.parametrize("seed", range(20))
def test_random_stories_give_everybody_the_group_that_a_slow_twin_chooses(seed):
    async def main():
        story = Story(seed, num_groups=1 + seed % 7)
        steps = [story.acquire] * 6 + [story.end] * 5 + [story.come_back] * 2
        steps += [story.die, story.cancel, story.restart]
        for _ in range(400):
            story.chance.choice(steps)()
            await story.check()
        assert len(story.twin.refused) + len(story.twin.held) > 0
        story.leases.stop("the end")
        for task in story.tasks.values():
            if not task.done():
                with pytest.raises(GroupError, match=r"^the end$"):
                    await task

    asyncio.run(main())


def test_a_wait_that_is_cancelled_just_after_it_got_its_lease_gives_it_back():
    async def main():
        leases = Leases(1)
        leases.open(cast("EngineGroup", FakeGroup(0, 0)))
        first, _ = await leases.acquire(DRIVER, 1, exclusive=True)
        late = asyncio.ensure_future(leases.acquire(DRIVER, 1, exclusive=True))
        await asyncio.sleep(0)
        leases.end(first)  # hands the group over before `late` runs again
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        async with asyncio.timeout(5):
            await leases.acquire(DRIVER, 1, exclusive=True)

    asyncio.run(main())


def test_the_least_loaded_is_that_of_a_search_through_all():
    chance = random.Random(0)
    for num_groups in (1, 2, 3, 8, 13):
        tree, tokens = LeastLoaded(), {}
        for _ in range(300):
            group_id = chance.randrange(num_groups)
            if chance.random() < 0.3:
                tree.remove(group_id)
                tokens.pop(group_id, None)
            else:
                tokens[group_id] = chance.randint(0, 9)
                tree.put(group_id, tokens[group_id])
            first = min(sorted(tokens), key=tokens.__getitem__, default=None)
            assert tree.first() == (None if first is None else (tokens[first], first))


def test_prompts_stay_on_their_node_and_a_node_that_runs_dry_gets_those_of_others():
    """Three nodes of two groups; the clients of node 0 have as much as they want, others less."""

    async def main():
        leases, chance = Leases(6), random.Random(0)
        for group_id in range(6):
            node = Node(f"node {group_id // 2}", "")
            leases.open(cast("EngineGroup", FakeGroup(group_id, 0, (node,))))
        tokens, held, crossed = [0] * 6, [], [0, 0]
        for turn in range(4000):
            is_dry = turn >= 2000  # node 2 has no prompts of its own from now on
            node_id = f"node {chance.randrange(2 if is_dry else 3)}"
            if len(held) >= 60:
                number, group_id, num_tokens = held.pop(chance.randrange(len(held)))
                leases.end(number)
                tokens[group_id] -= num_tokens
            num_tokens = chance.randint(50, 150)
            number, group = await leases.acquire(
                DRIVER, num_tokens, exclusive=False, node_id=node_id
            )
            crossed[is_dry] += node_id != group.nodes[0].node_id
            assert tokens[group.group_id] <= 2 * min(tokens) + num_tokens
            tokens[group.group_id] += num_tokens
            held.append((number, group.group_id, num_tokens))
        return crossed, tokens

    (crossed, crossed_when_dry), tokens = asyncio.run(main())
    assert crossed <= 100  # of 2,000
    assert crossed_when_dry >= 300
    assert min(tokens[4:]) >= max(tokens) / 3  # the engines of the dry node have work


def test_a_client_of_a_node_without_groups_gets_the_least_loaded_of_all():
    async def main():
        leases = Leases(2)
        for group_id in range(2):
            node = Node(f"node {group_id}", "")
            leases.open(cast("EngineGroup", FakeGroup(group_id, 0, (node,))))
        wanted = partial(leases.acquire, DRIVER, 10, exclusive=False, node_id="another node")
        taken = [await wanted() for _ in range(4)]
        assert [group.group_id for _, group in taken] == [0, 1, 0, 1]

    asyncio.run(main())


@contextmanager
def counted_lines() -> Iterator[list[str]]:
    """Collect the lines of `parallel.groups` that are executed: work, whatever the machine."""
    lines: list[str] = []

    def trace(frame, event, _):
        if "parallel/groups" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        if event == "line":
            lines.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def finish(work) -> Any:
    """Run a coroutine that has nothing to wait for."""
    with pytest.raises(StopIteration) as end:
        work.send(None)
    return end.value.value


def fleet(num_groups: int, use: Callable[[Supervisor], Any], monkeypatch) -> Any:
    """Let `use` have a supervisor of so many running groups, of which each eight share a node."""
    groups = Groups(where={group_id: f"node {group_id // 8}" for group_id in range(num_groups)})
    monkeypatch.setattr(module, "EngineGroup", groups)
    monkeypatch.setattr(module, "ending_nodes", dict)

    async def main():
        supervisor = Supervisor(replace(SPEC, heartbeat_s=3600.0), num_groups, 16)
        await supervisor.start()
        while (await supervisor.status()).num_ready < num_groups:
            await asyncio.sleep(0)
        result = use(supervisor)
        await supervisor.close()
        return result

    return asyncio.run(main())


def test_512_groups_with_4096_leases_choose_like_a_search_through_all(monkeypatch):
    def use(supervisor):
        chance = random.Random(1)
        tokens, leases = [0] * 512, []
        for _ in range(12_000):
            if len(leases) == 4096:
                number, group_id, num_tokens = leases.pop(chance.randrange(len(leases)))
                finish(supervisor.release(number))
                tokens[group_id] -= num_tokens
            num_tokens = chance.randint(1, 10_000)
            expected = min(range(512), key=tokens.__getitem__)
            number, group = finish(supervisor.acquire(DRIVER, num_tokens, exclusive=False))
            assert group.group_id == expected
            tokens[expected] += num_tokens
            leases.append((number, expected, num_tokens))

    fleet(512, use, monkeypatch)


def test_a_lease_and_its_end_cost_the_logarithm_of_the_groups(monkeypatch):
    def use(supervisor, num_groups):
        taken = [
            finish(supervisor.acquire(DRIVER, 10, exclusive=False)) for _ in range(8 * num_groups)
        ]
        with counted_lines() as acquired:
            finish(supervisor.acquire(DRIVER, 10, exclusive=False, node_id="node 0"))
        with counted_lines() as released:
            finish(supervisor.release(taken[num_groups // 2][0]))
        return len(acquired), len(released)

    sizes = (8, 64, 512)
    costs = [fleet(n, lambda supervisor, n=n: use(supervisor, n), monkeypatch) for n in sizes]
    for num_groups, (acquired, released) in zip(sizes, costs, strict=True):
        num_more_levels = math.log2(num_groups / sizes[0])
        assert acquired == costs[0][0] + 3 * num_more_levels  # a match of the tree has three lines
        assert released == costs[0][1] + 3 * num_more_levels
    assert max(costs[-1]) < 150


def test_a_release_serves_one_that_waits_and_wakes_nobody_else():
    async def cost_of_release(num_waiting: int) -> int:
        leases = Leases(1)
        leases.open(cast("EngineGroup", FakeGroup(0, 0)))
        number, _ = await leases.acquire(DRIVER, 10, exclusive=True)
        waiting = [
            asyncio.ensure_future(leases.acquire(DRIVER, 10, exclusive=True))
            for _ in range(num_waiting)
        ]
        await asyncio.sleep(0)

        with counted_lines() as lines:
            leases.end(number)
            await asyncio.sleep(0)
        assert [task.done() for task in waiting] == [True] + [False] * (num_waiting - 1)
        leases.stop("the end")
        await asyncio.gather(*waiting, return_exceptions=True)
        return len(lines)

    few, many = asyncio.run(cost_of_release(3)), asyncio.run(cost_of_release(1000))
    assert few == many > 0
