"""`EngineGroup`: one copy of the model on reserved resources, over one or more ranks.

A group starts whole or raises with nothing left behind, and it is the unit of failure: when a rank
dies all are killed, and the next generation takes their place, on the same reservation so that
nobody else can grab it meanwhile.

    GroupError        the job cannot go on; the message says what to do
      NoRoomError     nothing was free for a group in time
    DeadGroupError    this generation of one group is gone; its supervisor rebuilds it
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from parallel.expert_load import ExpertLoad, add
from parallel.seat import Address, Seat
from parallel.topology import Topology
from parallel.worker import DeadEngineError, Engine, Outcome, Rank, Request, Vitals

if TYPE_CHECKING:
    from parallel.rendezvous import Meeting

MAX_CONCURRENCY = 10_000  # calls that may wait in one actor: one for each row in flight

Placement = Literal["STRICT_PACK", "PACK", "SPREAD"]
_LOOK_AT_NODES_S = 5.0
_GONE = (RayActorError, NodeDiedError, ObjectLostError)  # a rank, its node, or an answer on it


class GroupError(RuntimeError):
    """The machines, not a row, are the problem; the message says what to do."""


class NoRoomError(GroupError):
    """No node had room for a group in time."""


class DeadGroupError(RuntimeError):
    """This generation of the group is gone, and with it what it had not answered."""


@dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """What every group of a run is made of.

    Raises:
        ValueError: a number is out of its range; the message names it.
    """

    # Picklable; runs in each rank's process, with the rank's seat where there are several.
    engine_factory: Callable[[Seat | None], Engine]
    num_ranks: int = 1
    num_cpus_per_rank: float = 1.0
    num_gpus_per_rank: float = 0.0
    placement: Placement = "STRICT_PACK"  # all ranks on one node
    resources_timeout_s: float = 120.0  # for nodes with room
    start_timeout_s: float = 1800.0  # for the engines to load
    exchange_timeout_s: float = 120.0  # for the slowest rank, in every exchange
    heartbeat_s: float = 2.0  # between two looks at a rank
    heartbeat_timeout_s: float = 15.0  # for a rank to answer
    stall_timeout_s: float = 900.0  # for one step
    topologies: Mapping[int, Topology] | None = None  # as in `Seat`, for `num_ranks`
    golden: tuple[Request, ...] = ()  # as `parallel.golden`; none turns the check off
    golden_tolerance: float = 0.25  # nats
    golden_every_steps: int = 2000  # of a group, between two askings

    def __post_init__(self) -> None:
        if self.num_ranks < 1:
            raise ValueError(f"num_ranks must be at least 1, got {self.num_ranks}")
        for name in ("num_cpus_per_rank", "num_gpus_per_rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.bundle:
            raise ValueError("a rank needs a CPU or a GPU, or a part of one")
        for name in (
            "resources_timeout_s start_timeout_s exchange_timeout_s heartbeat_s "
            "heartbeat_timeout_s stall_timeout_s golden_tolerance golden_every_steps"
        ).split():
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def bundle(self) -> dict[str, float]:
        """What one rank reserves, in Ray's words."""
        wanted = {"GPU": self.num_gpus_per_rank, "CPU": self.num_cpus_per_rank}
        return {name: amount for name, amount in wanted.items() if amount > 0}

    def open_meeting(self) -> "Meeting | None":
        """Where the ranks of all groups find each other; must live as long as the groups."""
        if self.num_ranks == 1:
            return None
        from parallel.rendezvous import Meeting  # torch, which a run of single ranks needs not

        return Meeting(ray.util.get_node_ip_address())

    def seats(self, group_id: int, generation: int, address: Address | None) -> list[Seat | None]:
        """The place of each rank; None for a rank that is alone."""
        if address is None:
            assert self.num_ranks == 1
            return [None]
        return [
            Seat(
                address=address,
                generation=f"group-{group_id}-generation-{generation}",
                rank=rank,
                num_ranks=self.num_ranks,
                join_timeout_s=self.start_timeout_s,
                exchange_timeout_s=self.exchange_timeout_s,
                topologies=self.topologies,
            )
            for rank in range(self.num_ranks)
        ]


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
            reservation = _reserve(spec)
            undo.callback(remove_placement_group, reservation)
            ranks = await _start_ranks(spec, group_id, 0, reservation, address)
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
            if await asyncio.to_thread(_has_lost_a_node, reservation):
                remove_placement_group(reservation)
                reservation = _reserve(spec)
                undo.callback(remove_placement_group, reservation)
            ranks = await _start_ranks(spec, self.group_id, generation, reservation, address)
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
        except (DeadEngineError, *_GONE) as error:
            raise DeadGroupError(self._death(rank, _reason(error))) from error

    async def check(self, spec: GroupSpec) -> list[Vitals]:
        """Ask every rank how it is.

        Raises:
            DeadGroupError: one is dead, silent, or in one step for too long.
        """
        answers = [rank.vitals.remote() for rank in self.ranks]
        vitals: list[Vitals] = []
        for rank, answer in enumerate(answers):
            try:
                vitals.append(await asyncio.wait_for(answer, spec.heartbeat_timeout_s))
            except TimeoutError:
                silence = f"silent for {spec.heartbeat_timeout_s:g} s; its process hangs"
                raise DeadGroupError(self._death(rank, silence)) from None
            except (DeadEngineError, RayError) as error:
                raise DeadGroupError(self._death(rank, _reason(error))) from error
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
                raise DeadGroupError(self._death(rank, _reason(error))) from error
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


def _reserve(spec: GroupSpec) -> PlacementGroup:
    return placement_group([spec.bundle] * spec.num_ranks, strategy=spec.placement)


async def _start_ranks(
    spec: GroupSpec,
    group_id: int,
    generation: int,
    reservation: PlacementGroup,
    address: Address | None,
) -> tuple[Any, ...]:
    """All ranks of a generation, ready; or none."""
    if not await _is_granted(reservation, spec.resources_timeout_s):
        raise NoRoomError(_no_room(spec, group_id))
    actor: Any = ray.remote(Rank)  # Any: its methods get their `.remote` at run time
    with ExitStack() as undo:
        ranks: list[Any] = []
        for number, seat in enumerate(spec.seats(group_id, generation, address)):
            place = PlacementGroupSchedulingStrategy(
                reservation, placement_group_bundle_index=number
            )
            rank = actor.options(
                num_cpus=spec.num_cpus_per_rank,
                num_gpus=spec.num_gpus_per_rank,
                max_concurrency=MAX_CONCURRENCY,
                scheduling_strategy=place,
            ).remote(partial(spec.engine_factory, seat))
            undo.callback(ray.kill, rank)
            ranks.append(rank)
        await _until_ready(spec, group_id, ranks, reservation)
        undo.pop_all()
    return tuple(ranks)


async def _until_ready(
    spec: GroupSpec, group_id: int, ranks: Sequence[Any], reservation: PlacementGroup
) -> None:
    """Wait for all ranks, no longer than for the first that fails."""
    deadline = time.monotonic() + spec.start_timeout_s
    left = {asyncio.ensure_future(rank.ready.remote()) for rank in ranks}
    while left:
        wait_s = min(_LOOK_AT_NODES_S, max(0.0, deadline - time.monotonic()))
        done, left = await asyncio.wait(left, timeout=wait_s, return_when=asyncio.FIRST_EXCEPTION)
        errors = [error for error in (one.exception() for one in done) if error is not None]
        for error in errors:
            if not isinstance(error, RayError):
                raise error
            raise GroupError(f"group {group_id} did not start: {_reason(error)}") from error
        if left and time.monotonic() >= deadline:
            raise GroupError(
                f"group {group_id} did not load its engine in {spec.start_timeout_s:g} s; if the "
                "checkpoint is on a slow disk, copy it to the nodes"
            )
        if left and not done and await asyncio.to_thread(_has_lost_a_node, reservation):
            raise GroupError(f"group {group_id} lost a node while it started")


async def _is_granted(reservation: PlacementGroup, timeout_s: float) -> bool:
    """Wait in a thread, since `reservation.ready()` would start a process for it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        # In short turns, because all groups that wait share a few threads.
        if await asyncio.to_thread(reservation.wait, 1):
            return True
    return False


def _has_lost_a_node(reservation: PlacementGroup) -> bool:
    """Whether a bundle has no living node; Ray itself would wait for another one for ever."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    table = placement_group_table(reservation)
    places = table["bundles_to_node_id"].values()
    return table["state"] == "REMOVED" or any(node not in alive for node in places)


def _no_room(spec: GroupSpec, group_id: int) -> str:
    wanted = _amounts(spec.bundle)
    if spec.num_ranks > 1:
        where = "on one node" if spec.placement == "STRICT_PACK" else "on any nodes"
        wanted = f"{spec.num_ranks} times {wanted} {where}"
    else:
        wanted = f"{wanted} on one node"
    advice = "ask for fewer groups or less for each, stop what else runs there, or add nodes"
    if spec.num_ranks > 1 and spec.placement == "STRICT_PACK":
        advice = f"let the ranks of a group lie on several nodes, {advice}"
    return (
        f"group {group_id} needs {wanted} and waited {spec.resources_timeout_s:g} s; the cluster "
        f"has {_amounts(ray.cluster_resources())}, free are "
        f"{_amounts(ray.available_resources())}; {advice}"
    )


def _amounts(resources: Mapping[str, float]) -> str:
    amounts = [f"{resources.get(name, 0):g} {name}" for name in ("GPU", "CPU")]
    return " and ".join(amount for amount in amounts if not amount.startswith("0 ")) or "nothing"


def _reason(error: BaseException) -> str:
    """What happened on the rank, without Ray's remote traceback around it."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        kind = "" if isinstance(cause, DeadEngineError) else f"{type(cause).__name__}: "
        return f"{kind}{cause}"
    return " ".join(str(error).split()).partition(" Some common causes")[0]
