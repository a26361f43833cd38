"""`EngineGroup`: one copy of the model on reserved resources.

A group starts whole or raises with nothing left behind, and it is the unit of failure: when its
rank dies the next generation takes its place, on the same reservation so that nobody else can grab
it meanwhile.

    GroupError        the job cannot go on; the message says what to do
      NoRoomError     nothing was free for a group in time
    DeadGroupError    this generation of one group is gone; its supervisor rebuilds it
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from parallel.worker import DeadEngineError, Engine, Outcome, Rank, Request

MAX_CONCURRENCY = 10_000  # calls that may wait in one actor: one for each row in flight


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

    engine_factory: Callable[[], Engine]  # picklable; runs in the rank's process
    num_cpus_per_rank: float = 1.0
    num_gpus_per_rank: float = 0.0
    resources_timeout_s: float = 120.0  # for a node with room
    start_timeout_s: float = 1800.0  # for the engine to load

    def __post_init__(self) -> None:
        for name in ("num_cpus_per_rank", "num_gpus_per_rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.bundle:
            raise ValueError("a rank needs a CPU or a GPU, or a part of one")
        for name in ("resources_timeout_s", "start_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def bundle(self) -> dict[str, float]:
        """What one rank reserves, in Ray's words."""
        wanted = {"GPU": self.num_gpus_per_rank, "CPU": self.num_cpus_per_rank}
        return {name: amount for name, amount in wanted.items() if amount > 0}


@dataclass(frozen=True)
class EngineGroup:
    """A running group; picklable, so that clients talk to the rank without a detour.

    placement group (STRICT_PACK) --> Rank actor --> loaded engine
    """

    group_id: int
    generation: int
    reservation: PlacementGroup
    rank: Any  # handle of the `Rank` actor

    @classmethod
    async def start(cls, spec: GroupSpec, group_id: int = 0) -> Self:
        """Reserve, start and load the first generation.

        Raises:
            NoRoomError: nothing was free in time.
            GroupError: the rank died or did not load; nothing is left of it.
        """
        with ExitStack() as undo:
            reservation = placement_group([spec.bundle], strategy="STRICT_PACK")
            undo.callback(remove_placement_group, reservation)
            rank = await _start_rank(spec, group_id, reservation)
            undo.pop_all()
        return cls(group_id, 0, reservation, rank)

    async def rebuild(self, spec: GroupSpec) -> Self:
        """Kill this generation and start the next one in its place.

        Raises:
            NoRoomError: the node is gone and no other had room in time; the reservation stays.
            GroupError: the rank died or did not load; the reservation stays.
        """
        ray.kill(self.rank)
        rank = await _start_rank(spec, self.group_id, self.reservation)
        return type(self)(self.group_id, self.generation + 1, self.reservation, rank)

    async def generate(self, client_id: str, requests: Sequence[Request]) -> list[Outcome]:
        """Answer `requests`, in their order.

        Raises:
            DeadGroupError: report it to the supervisor and ask for another group.
        """
        answer = self.rank.generate.remote(client_id, requests)
        try:
            return await answer
        except asyncio.CancelledError:
            ray.cancel(answer)
            raise
        except (DeadEngineError, RayActorError) as error:
            raise DeadGroupError(
                f"group {self.group_id} (generation {self.generation}): {_reason(error)}"
            ) from error

    def cancel_client(self, client_id: str) -> None:
        """Forget all requests of a client that is gone, without waiting for it."""
        self.rank.cancel_client.remote(client_id)

    def close(self) -> None:
        """Kill the rank and give its resources back; closing twice is no error."""
        ray.kill(self.rank)
        remove_placement_group(self.reservation)


async def _start_rank(spec: GroupSpec, group_id: int, reservation: PlacementGroup) -> Any:
    if not await _is_granted(reservation, spec.resources_timeout_s):
        raise NoRoomError(_no_room(spec, group_id))
    actor: Any = ray.remote(Rank)  # Any: its methods get their `.remote` at run time
    rank = actor.options(
        num_cpus=spec.num_cpus_per_rank,
        num_gpus=spec.num_gpus_per_rank,
        max_concurrency=MAX_CONCURRENCY,
        scheduling_strategy=PlacementGroupSchedulingStrategy(reservation),
    ).remote(spec.engine_factory)
    with ExitStack() as undo:
        undo.callback(ray.kill, rank)
        try:
            await asyncio.wait_for(rank.ready.remote(), spec.start_timeout_s)
        except TimeoutError:
            raise GroupError(
                f"group {group_id} did not load its engine in {spec.start_timeout_s:g} s; if the "
                "checkpoint is on a slow disk, copy it to the nodes"
            ) from None
        except RayError as error:
            raise GroupError(f"group {group_id} did not start: {_reason(error)}") from error
        undo.pop_all()
    return rank


async def _is_granted(reservation: PlacementGroup, timeout_s: float) -> bool:
    """Wait in a thread, since `reservation.ready()` would start a process for it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        # In short turns, because all groups that wait share a few threads.
        if await asyncio.to_thread(reservation.wait, 1):
            return True
    return False


def _no_room(spec: GroupSpec, group_id: int) -> str:
    return (
        f"group {group_id} needs {_amounts(spec.bundle)} on one node and waited "
        f"{spec.resources_timeout_s:g} s; the cluster has {_amounts(ray.cluster_resources())}, "
        f"free are {_amounts(ray.available_resources())}; ask for fewer groups or less for each, "
        "stop what else runs there, or add nodes"
    )


def _amounts(resources: Mapping[str, float]) -> str:
    amounts = [f"{resources.get(name, 0):g} {name}" for name in ("GPU", "CPU")]
    return " and ".join(amount for amount in amounts if not amount.startswith("0 ")) or "nothing"


def _reason(error: Exception) -> str:
    """What happened on the rank, without Ray's remote traceback around it."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        kind = "" if isinstance(cause, DeadEngineError) else f"{type(cause).__name__}: "
        return f"{kind}{cause}"
    return " ".join(str(error).split()).partition(" Some common causes")[0]
