"""`EngineGroup`: one copy of the model on reserved resources, over one or more ranks.

A group starts whole, or raises and leaves nothing behind. It is also the unit of failure: when one
rank dies, all are killed, and the next generation starts in their place. It uses the same
reservation, so that nobody else can take the resources meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from parallel.experts.load import ExpertLoad, add
from parallel.groups.errors import GONE, DeadGroupError, reason_of
from parallel.groups.nodes import Node, must_move
from parallel.groups.spec import GroupSpec
from parallel.groups.start import reserve, start_ranks
from parallel.ranks.rank_spec import Address
from parallel.ranks.requests import Outcome, Request
from parallel.ranks.worker import DeadEngineError, RankHealth


@dataclass(frozen=True)
class EngineGroup:
    """A running group. It is picklable, so clients call the ranks directly.

    placement group --> R Rank actors --> joined in a process group --> loaded engines
    """

    group_id: int
    generation: int
    reservation: PlacementGroup
    ranks: tuple[Any, ...]  # handles of the `Rank` actors
    nodes: tuple[Node, ...] = ()  # of each rank; empty if they are not known

    @classmethod
    async def start(
        cls, spec: GroupSpec, group_id: int, address: Address | None, generation: int = 0
    ) -> Self:
        """Reserve, start, join and load a generation; a rank that is alone has no address.

        Raises NoRoomError: no node had room in time; or another GroupError: a rank died or did not
        load. Then nothing is left of the group.
        """
        with ExitStack() as undo:
            reservation = reserve(spec)
            undo.callback(remove_placement_group, reservation)
            ranks, nodes = await start_ranks(spec, group_id, generation, reservation, address)
            undo.pop_all()
        return cls(group_id, generation, reservation, ranks, nodes)

    async def rebuild(
        self, spec: GroupSpec, address: Address | None, *, elsewhere: bool = False
    ) -> Self:
        """Kill this generation and start the next, elsewhere if one of its nodes is gone or ends.

        With `elsewhere` this generation keeps its reservation, so that the next one gets another.
        Raises NoRoomError: no other node had room in time; or another GroupError: a rank died or
        did not load.
        """
        generation = self.generation + 1
        self.kill()
        with ExitStack() as undo:
            reservation = self.reservation
            is_lost = not elsewhere and await asyncio.to_thread(must_move, reservation)
            if is_lost:
                remove_placement_group(reservation)
            if elsewhere or is_lost:
                reservation = reserve(spec)
                undo.callback(remove_placement_group, reservation)
            ranks, nodes = await start_ranks(spec, self.group_id, generation, reservation, address)
            undo.pop_all()
        return type(self)(self.group_id, generation, reservation, ranks, nodes)

    async def generate(
        self, client_id: str, requests: Sequence[Request], rank: int = 0
    ) -> list[Outcome]:
        """Answer `requests` on one rank, in their order. Cancelling the call cancels its requests.

        Raises DeadGroupError: report it to the supervisor and lease a group again.
        """
        answer = self.ranks[rank].generate.remote(client_id, requests)
        try:
            return await answer
        except asyncio.CancelledError:
            ray.cancel(answer)  # Ray does not cancel the remote call by itself
            raise
        except (DeadEngineError, *GONE) as error:
            raise DeadGroupError(self._death(rank, reason_of(error))) from error

    async def check(self, spec: GroupSpec) -> list[RankHealth]:
        """Ask every rank for its health.

        Raises DeadGroupError: a rank is dead, does not answer, or is in one step for too long.
        """
        answers = [rank.health.remote() for rank in self.ranks]
        health: list[RankHealth] = []
        for rank, answer in enumerate(answers):
            try:
                async with asyncio.timeout(spec.heartbeat_timeout_s):
                    health.append(await self._answer(rank, answer))
            except TimeoutError:
                silence = f"silent for {spec.heartbeat_timeout_s:g} s; its process hangs"
                raise DeadGroupError(self._death(rank, silence)) from None
            if health[-1].busy_s > spec.stall_timeout_s:
                stall = f"in one step for {health[-1].busy_s:.0f} s"
                raise DeadGroupError(self._death(rank, stall))
        return health

    async def expert_load(self) -> ExpertLoad:
        """Sum the tokens that each expert has computed; a dead rank raises DeadGroupError."""
        answers = [rank.expert_load.remote() for rank in self.ranks]
        return add([await self._answer(*each) for each in enumerate(answers)])

    def cancel_client(self, client_id: str) -> None:
        """Forget all requests of a client that is gone; return without waiting for the ranks."""
        for rank in self.ranks:
            rank.cancel_client.remote(client_id)

    def kill(self) -> None:
        """Kill the ranks, but keep their resources, so that nobody else gets them."""
        for rank in self.ranks:
            ray.kill(rank)

    def close(self) -> None:
        """Kill the ranks and give their resources back; closing twice is no error."""
        self.kill()
        remove_placement_group(self.reservation)

    async def _answer(self, rank: int, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except (DeadEngineError, RayError) as error:
            raise DeadGroupError(self._death(rank, reason_of(error))) from error

    def _death(self, rank: int, reason: str) -> str:
        who = f"group {self.group_id} (generation {self.generation})"
        if len(self.ranks) > 1:
            who = f"{who}, rank {rank}"
        return f"{who}: {reason}{place(self.nodes, rank)}"


def place(nodes: Sequence[Node], rank: int) -> str:
    """Return words for the node of a rank, to end a message; empty if nodes are not known."""
    return f" (on {nodes[rank].name})" if nodes else ""
