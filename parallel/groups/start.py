"""Start the ranks of a group on reserved resources: all of them, or none."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from parallel.groups.errors import GroupError, NoRoomError, reason_of
from parallel.groups.nodes import Node, has_lost_a_node, nodes_of
from parallel.groups.spec import GroupSpec
from parallel.ranks.rank_spec import Address
from parallel.ranks.worker import Rank

# Calls that may wait in one async actor. Ray's default is 1,000; a rank has one for each row in
# flight, and the health checks must not queue behind them.
MAX_CONCURRENCY = 10_000
_NODE_CHECK_INTERVAL_S = 5.0


def reserve(spec: GroupSpec) -> PlacementGroup:
    """Ask for one bundle per rank; granted or not, the request stays until somebody removes it."""
    return placement_group([spec.bundle] * spec.num_ranks, strategy=spec.placement)


async def start_ranks(
    spec: GroupSpec,
    group_id: int,
    generation: int,
    reservation: PlacementGroup,
    address: Address | None,
) -> tuple[tuple[Any, ...], tuple[Node, ...]]:
    """Start all ranks of a generation; return their handles and nodes when they are ready.

    Both are in the order of the ranks.

    Raises NoRoomError: the reservation was not granted in time; or another GroupError: a rank died
    or did not load. Then no rank is left.
    """
    if not await _is_granted(reservation, spec.resources_timeout_s):
        raise NoRoomError(_no_room(spec, group_id))
    nodes = await asyncio.to_thread(nodes_of, reservation)
    who = f"group {group_id} (on {', '.join(dict.fromkeys(node.name for node in nodes))})"
    actor: Any = ray.remote(Rank)  # Any: Ray adds `.remote` to the methods at run time
    with ExitStack() as undo:
        ranks: list[Any] = []
        for number, rank_spec in enumerate(spec.rank_specs(group_id, generation, address)):
            bundle = PlacementGroupSchedulingStrategy(
                reservation, placement_group_bundle_index=number
            )
            rank = actor.options(
                num_cpus=spec.num_cpus_per_rank,
                num_gpus=spec.num_gpus_per_rank,
                max_concurrency=MAX_CONCURRENCY,
                scheduling_strategy=bundle,
            ).remote(partial(spec.engine_factory, rank_spec), spec.admission)
            undo.callback(ray.kill, rank)
            ranks.append(rank)
        await _until_ready(spec, who, ranks, reservation)
        undo.pop_all()
    return tuple(ranks), nodes


async def _until_ready(
    spec: GroupSpec, who: str, ranks: Sequence[Any], reservation: PlacementGroup
) -> None:
    """Wait until all ranks are ready, or until the first one fails."""
    deadline = time.monotonic() + spec.start_timeout_s
    left = {asyncio.ensure_future(rank.ready.remote()) for rank in ranks}
    while left:
        wait_s = min(_NODE_CHECK_INTERVAL_S, max(0.0, deadline - time.monotonic()))
        done, left = await asyncio.wait(left, timeout=wait_s, return_when=asyncio.FIRST_EXCEPTION)
        errors = [error for error in (one.exception() for one in done) if error is not None]
        for error in errors:
            if not isinstance(error, RayError):
                raise error
            raise GroupError(f"{who} did not start: {reason_of(error)}") from error
        if left and time.monotonic() >= deadline:
            raise GroupError(
                f"{who} did not load its engine in {spec.start_timeout_s:g} s; if the "
                "checkpoint is on a slow disk, copy it to the nodes"
            )
        if left and not done and await asyncio.to_thread(has_lost_a_node, reservation):
            raise GroupError(f"{who} lost a node while it started")


async def _is_granted(reservation: PlacementGroup, timeout_s: float) -> bool:
    """Wait for a reservation in a thread: `reservation.ready()` would start a process to wait."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        # One second at a time, because all groups that wait share the few threads of the loop.
        if await asyncio.to_thread(reservation.wait, 1):
            return True
    return False


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
