"""Who sends the next requests to which node, in random stories and in small ones; no Ray runs."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from parallel.groups.errors import GroupError
from parallel.groups.turns import Turns
from tests.parallel.groups.test_leases import counted_lines

NUM_REQUESTS = 24
NODES = ["node 0", "node 1", "node 2"]


class Story:
    """Takes and ends turns at random, and sees who got which."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.turns = Turns(NUM_REQUESTS)
        self.num_ranks: Counter[str] = Counter()
        self.asked: list[tuple[str, int, asyncio.Task[tuple[int, str]]]] = []
        self.ended: set[int] = set()  # indices in `asked`

    def acquire(self) -> None:
        node_id = self.chance.choice([*NODES, "a node without ranks"])
        num = self.chance.randint(1, 6)
        turn = self.turns.acquire("process", node_id, num)
        self.asked.append((node_id, num, asyncio.ensure_future(turn)))

    def end(self) -> None:
        if self.held():
            index = self.chance.choice(self.held())
            number, _ = self.asked[index][2].result()
            for _ in range(2):  # the second time is no error
                self.turns.end(number)
            self.ended.add(index)

    def cancel(self) -> None:
        waiting = self.waiting()
        if waiting:
            index = self.chance.choice(waiting)
            self.asked[index][2].cancel()
            self.ended.add(index)

    def come(self) -> None:
        node_id = self.chance.choice(NODES)
        self.num_ranks[node_id] += 2
        self.turns.add_ranks([node_id] * 2)

    def go(self) -> None:
        there = [node_id for node_id, number in self.num_ranks.items() if number]
        if len(there) > 1:
            node_id = self.chance.choice(there)
            self.num_ranks[node_id] -= 2
            self.turns.remove_ranks([node_id] * 2)

    def held(self) -> list[int]:
        return [
            index
            for index, (_, _, task) in enumerate(self.asked)
            if task.done() and index not in self.ended
        ]

    def waiting(self) -> list[int]:
        return [index for index, (_, _, task) in enumerate(self.asked) if not task.done()]

    def check(self) -> None:
        used: Counter[str] = Counter()
        for index in self.held():
            used[self.asked[index][2].result()[1]] += self.asked[index][1]
        num_all = self.num_ranks.total()
        homes = {node_id for node_id, number in self.num_ranks.items() if number}
        waiting = self.waiting()
        for node_id in homes:
            share = NUM_REQUESTS * self.num_ranks[node_id] / num_all
            assert not waiting or used[node_id] >= share
        for node_id in NODES:  # nobody overtakes those who waited on the same node
            held, late = (
                [index for index in indices if self.asked[index][0] == node_id]
                for indices in (self.held(), waiting)
            )
            assert max(held, default=-1) < min(late, default=len(self.asked))


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(20))
def test_nobody_waits_while_a_node_has_room_and_everybody_gets_a_turn(seed):
    async def main():
        story = Story(seed)
        story.come()
        steps = [story.acquire] * 6 + [story.end] * 5 + [story.cancel, story.come, story.go]
        for _ in range(400):
            story.chance.choice(steps)()
            await settle()
            story.check()
        while story.waiting():
            story.end()
            await settle()
            story.check()

    asyncio.run(main())


def play(use: Callable[[Turns], Awaitable[None]], num_nodes: int = 2) -> None:
    async def main():
        turns = Turns(4)
        for node_id in NODES[:num_nodes]:
            turns.add_ranks([node_id])
        async with asyncio.timeout(5):
            await use(turns)

    asyncio.run(main())


def ask(turns: Turns, node_id: str, num: int = 1, process: str = "process"):
    return asyncio.ensure_future(turns.acquire(process, node_id, num))


def test_a_dry_node_takes_from_who_has_waited_longest_and_its_own_come_first_again():
    async def use(turns):
        first = [await turns.acquire("process", "node 0", 1) for _ in range(4)]
        assert [node_id for _, node_id in first] == ["node 0", "node 0", "node 1", "node 1"]
        foreign = [ask(turns, "node 0") for _ in range(2)]
        await settle()
        own = ask(turns, "node 1")
        await settle()
        turns.end(first[2][0])
        await settle()
        assert [each.done() for each in (*foreign, own)] == [False, False, True]
        turns.end(first[3][0])
        await settle()
        assert (await foreign[0])[1] == "node 1"
        assert not foreign[1].done()
        turns.end(first[0][0])
        assert (await foreign[1])[1] == "node 0"

    play(use)


def test_a_client_on_a_node_without_ranks_is_not_overtaken_for_ever():
    async def use(turns):
        held = [await turns.acquire("process", "node 0", 2) for _ in range(2)]
        homeless = ask(turns, "the head")
        await settle()
        later = [ask(turns, "node 0") for _ in range(5)]
        await settle()
        turns.end(held[0][0])
        await settle()
        assert homeless.done()
        assert [each.done() for each in later] == [True, False, False, False, False]

    play(use)


def test_who_needs_more_than_there_is_does_not_wait_for_ever():
    async def use(turns):
        taken = [await turns.acquire("process", node_id, 100) for node_id in NODES[:2]]
        assert [node_id for _, node_id in taken] == NODES[:2]
        more = ask(turns, "node 0")
        await settle()
        assert not more.done()
        turns.end(taken[0][0])
        await more

    play(use)


def test_the_turns_of_a_dead_client_are_free_again_and_its_wishes_are_refused():
    async def use(turns):
        held = [await turns.acquire("dead", "node 0", 2) for _ in range(2)]
        wish, other = ask(turns, "node 0", process="dead"), ask(turns, "node 1")
        await settle()
        turns.end_all_of("dead")
        with pytest.raises(GroupError, match="successor"):
            await wish
        await other
        for number, _ in held:
            turns.end(number)  # a late word of it is no error
        assert (await turns.acquire("process", "node 0", 2))[1] == "node 0"

    play(use)


def test_a_turn_that_is_cancelled_just_after_it_was_given_is_given_back():
    async def use(turns):
        number, _ = await turns.acquire("process", "node 0", 4)
        late = ask(turns, "node 0", 4)
        await settle()
        turns.end(number)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        await turns.acquire("process", "node 0", 4)

    play(use, num_nodes=1)


def test_who_waits_is_told_why_the_job_stops():
    async def use(turns):
        await turns.acquire("process", "node 0", 4)
        waiting = ask(turns, "node 0")
        await settle()
        turns.stop("the end")
        for wish in (waiting, ask(turns, "node 0")):
            with pytest.raises(GroupError, match=r"^the end$"):
                await wish

    play(use, num_nodes=1)


def test_ranks_that_come_bring_room_to_who_waits():
    async def use(turns):
        waiting = ask(turns, "node 0")
        await settle()
        assert not waiting.done()
        turns.add_ranks(["node 5"])
        assert (await waiting)[1] == "node 5"

    play(use, num_nodes=0)


def test_a_turn_costs_the_same_however_many_wait_and_the_logarithm_of_the_nodes():
    async def cost(num_nodes: int, num_waiting: int) -> int:
        turns = Turns(num_nodes)
        turns.add_ranks([f"node {n}" for n in range(num_nodes)])
        held = [await turns.acquire("process", f"node {n}", 1) for n in range(num_nodes)]
        waiting = [ask(turns, f"node {n % num_nodes}") for n in range(num_waiting)]
        await settle()
        with counted_lines() as lines:
            turns.end(held[0][0])
            await settle()
        turns.stop("the end")
        await asyncio.gather(*waiting, return_exceptions=True)
        return len(lines)

    few = asyncio.run(cost(8, 16))
    assert asyncio.run(cost(8, 1600)) == few > 0
    assert asyncio.run(cost(512, 1600)) <= few + 2 * 3 * 6  # two changes of six more levels
