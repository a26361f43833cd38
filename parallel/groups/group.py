"""`EngineGroup`: one copy of the model on reserved resources, over one or more ranks.

A group starts whole or raises with nothing left behind, and it is the unit of failure: when a rank
dies all are killed, and the next generation takes their place, on the same reservation so that
nobody else can grab it meanwhile.
"""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from parallel.experts.load import ExpertLoad, add
from parallel.groups.errors import GONE, DeadGroupError, reason_of
from parallel.groups.spec import GroupSpec
from parallel.groups.start import has_lost_a_node, reserve, start_ranks
from parallel.ranks.rank_spec import Address
from parallel.ranks.worker import DeadEngineError, Outcome, Request, Vitals


@dataclass(frozen=True)
class EngineGroup:
    """A running group; picklable, so that clients talk to the ranks without a detour.

    placement group --> R Rank actors --> joined in a process group --> loaded engines
    """

    group_id: int
    generation: int
    reservation: PlacementGroup
    ranks: tuple[Any, ...]  # handles of the `Rank` actors

    @classmethod
    async def start(cls, spec: GroupSpec, group_id: int, address: Address | None) -> Self:
        """Reserve, start, join and load the first generation.

        Args:
            spec: what to start.
            group_id: of the new group.
            address: of the meeting, where there are several ranks.

        Raises:
            NoRoomError: nothing was free in time.
            GroupError: a rank died or did not load; nothing is left of the group.
        """
        with ExitStack() as undo:
            reservation = reserve(spec)
            undo.callback(remove_placement_group, reservation)
            ranks = await start_ranks(spec, group_id, 0, reservation, address)
            undo.pop_all()
        return cls(group_id, 0, reservation, ranks)

    async def rebuild(self, spec: GroupSpec, address: Address | None) -> Self:
        """Kill this generation and start the next one in its place, or elsewhere without its node.

        Raises:
            NoRoomError: a node is gone and no other had room in time.
            GroupError: a rank died or did not load.
        """
        generation = self.generation + 1
        self._kill_ranks()
        with ExitStack() as undo:
            reservation = self.reservation
            if await asyncio.to_thread(has_lost_a_node, reservation):
                remove_placement_group(reservation)
                reservation = reserve(spec)
                undo.callback(remove_placement_group, reservation)
            ranks = await start_ranks(spec, self.group_id, generation, reservation, address)
            undo.pop_all()
        return type(self)(self.group_id, generation, reservation, ranks)

    async def generate(
        self, client_id: str, requests: Sequence[Request], rank: int = 0
    ) -> list[Outcome]:
        """Answer `requests` on one rank, in their order.

        Raises:
            DeadGroupError: report it to the supervisor and ask for another group.
        """
        answer = self.ranks[rank].generate.remote(client_id, requests)
        try:
            return await answer
        except asyncio.CancelledError:
            ray.cancel(answer)
            raise
        except (DeadEngineError, *GONE) as error:
            raise DeadGroupError(self._death(rank, reason_of(error))) from error

    async def check(self, spec: GroupSpec) -> list[Vitals]:
        """Ask every rank how it is.

        Raises:
            DeadGroupError: one is dead, silent, or in one step for too long.
        """
        answers = [rank.vitals.remote() for rank in self.ranks]
        vitals: list[Vitals] = []
        for rank, answer in enumerate(answers):
            try:
                async with asyncio.timeout(spec.heartbeat_timeout_s):
                    vitals.append(await answer)
            except TimeoutError:
                silence = f"silent for {spec.heartbeat_timeout_s:g} s; its process hangs"
                raise DeadGroupError(self._death(rank, silence)) from None
            except (DeadEngineError, RayError) as error:
                raise DeadGroupError(self._death(rank, reason_of(error))) from error
            if vitals[-1].busy_s > spec.stall_timeout_s:
                stall = f"in one step for {vitals[-1].busy_s:.0f} s"
                raise DeadGroupError(self._death(rank, stall))
        return vitals

    async def expert_load(self) -> ExpertLoad:
        """Tokens that each expert of this generation has computed, on all ranks.

        Raises:
            DeadGroupError: a rank is dead.
        """
        answers = [rank.expert_load.remote() for rank in self.ranks]
        loads: list[ExpertLoad] = []
        for rank, answer in enumerate(answers):
            try:
                loads.append(await answer)
            except (DeadEngineError, RayError) as error:
                raise DeadGroupError(self._death(rank, reason_of(error))) from error
        return add(loads)

    def cancel_client(self, client_id: str) -> None:
        """Forget all requests of a client that is gone, without waiting for it."""
        for rank in self.ranks:
            rank.cancel_client.remote(client_id)

    def close(self) -> None:
        """Kill the ranks and give their resources back; closing twice is no error."""
        self._kill_ranks()
        remove_placement_group(self.reservation)

    def _kill_ranks(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)

    def _death(self, rank: int, reason: str) -> str:
        who = f"group {self.group_id} (generation {self.generation})"
        return f"{who}, rank {rank}: {reason}" if len(self.ranks) > 1 else f"{who}: {reason}"
