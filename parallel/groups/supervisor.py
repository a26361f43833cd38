"""`Supervisor`: the actor that owns all groups of a run.

Groups live outside Ray Data, so a restarted map actor never touches them. The supervisor belongs to
the driver and dies with it; then Ray removes the ranks and their placement groups.

The supervisor leases groups to whoever asks, those of the client's own node first. It rebuilds a
group that is reported dead, under a new generation number. A group whose node announces its end is
moved: it answers what it has, while its next generation starts elsewhere. A group that fails again
and again is set apart, and the others go on. After too many failures everybody gets a `GroupError`,
which stops the job. Drivers and clients reach the supervisor through `parallel.groups.client`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from parallel.experts.load import ExpertLoad, add
from parallel.groups.errors import DeadGroupError, GroupError, NoRoomError, reason_of
from parallel.groups.failures import Failures
from parallel.groups.golden import GoldenPrompts
from parallel.groups.group import EngineGroup
from parallel.groups.leases import Client, Leases
from parallel.groups.monitor import GroupMonitor
from parallel.groups.nodes import ending_nodes, living_nodes
from parallel.groups.slot import Slot
from parallel.groups.spec import GroupSpec
from parallel.groups.turns import Turns
from parallel.ranks.rendezvous_store import RendezvousStore

_RETRY_AFTER_S = 2.0  # after a start that failed
_LOOK_FOR_NODES_S = 10.0  # between two looks, while groups have no room
_LOOK_FOR_ENDS_S = 2.0  # between two looks for nodes that end; spot machines have 30 s and more
_LONGEST_END_S = 900.0  # for what a group has in flight, where its node names no time

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GroupsStatus:
    """The state of all groups, for progress lines and reports."""

    num_groups: int
    num_ready: int
    failures: tuple[str, ...]  # all so far, oldest first
    # Group -> the latest numbers of each of its ranks.
    rank_stats: Mapping[int, tuple[Mapping[str, float], ...]]
    set_apart: Mapping[int, str] = field(default_factory=dict)  # group -> its last failure
    num_moved: int = 0  # groups that were moved before the end of their node


class Supervisor:
    """Starts, leases, rebuilds and closes groups; stops the job after too many failures.

    build each group --> ready: acquire, release
          ^                |
          +-- report_failure (a new generation, or the group is set apart, or the job stops)
          +-- its node ends (a new generation; the old one answers what it has)

    Everything runs on one event loop, so state changes only between awaits and needs no locks.

    Time limits use `asyncio.timeout`. `asyncio.wait_for` of Python 3.11 may lose a cancellation
    that comes at the same moment as the answer, and `close` would then wait forever.
    """

    def __init__(
        self,
        spec: GroupSpec,
        num_groups: int,
        max_group_failures: float,  # a group and day; see `Failures`
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._failures = Failures(spec, num_groups, max_group_failures, clock)
        self._slots = [Slot(group_id) for group_id in range(num_groups)]
        self._leases = Leases(num_groups)
        self._turns = Turns(spec.max_requests)
        self._error: str | None = None  # why the job must stop
        self._has_worked = False  # whether any group was ever ready
        self._has_begun = asyncio.Event()  # the first group is ready, or the job must stop
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrival: asyncio.Task[None] | None = None  # ends when a node comes
        self._store: RendezvousStore | None = None
        self._golden = GoldenPrompts(spec.golden, spec.start_timeout_s)
        self._monitors: list[GroupMonitor] = []  # of all generations, dead ones too
        self._moved: set[tuple[int, int]] = set()  # group and generation

    async def start(self) -> None:
        """Start all groups and return when the first is ready; others serve as soon as they are.

        Raises GroupError: a group failed before any was ready, or no group found room.
        """
        self._store = self._spec.open_store()
        for slot in self._slots:
            self._in_background(self._build(slot, None))
        self._in_background(self._keep_moving_groups())
        await self._has_begun.wait()
        if self._error is not None:
            raise GroupError(self._error)

    async def take_turn(self, client: Client, node_id: str, num_requests: int) -> tuple[int, str]:
        """Wait for room for requests of a node: the turn's number, and the node to send them to.

        A new process of a known actor takes over from the earlier one, also in `acquire`.
        Raises GroupError: the job must stop.
        """
        self._register(client)
        return await self._turns.acquire(client.process_id, node_id, num_requests)

    async def end_turn(self, number: int) -> None:
        """End a turn; one that has already ended is no error."""
        self._turns.end(number)

    async def acquire(
        self, client: Client, num_tokens: int, *, exclusive: bool, node_id: str | None = None
    ) -> tuple[int, EngineGroup]:
        """Lease the group that `FreeGroups` chooses for a node: the lease's number, and the group.

        This waits while there is none; `exclusive` waits until nobody else has the group, and lets
        nobody in before `release`. Raises GroupError: the job must stop.
        """
        self._register(client)
        return await self._leases.acquire(client, num_tokens, exclusive=exclusive, node_id=node_id)

    async def release(self, number: int) -> None:
        """End a lease; a lease that has already ended is no error."""
        self._leases.end(number)

    async def report_failure(self, group_id: int, generation: int, reason: str) -> bool:
        """Replace a dead generation of a group; repeated reports of it change nothing.

        Return False if it is no failure: the group was moved, because its node ends.
        """
        slot = self._slots[group_id]
        dead = slot.group
        if dead is not None and dead.generation == generation:
            self._unwatch(slot, dead)
            self._count(slot, dead, reason)
            self._in_background(self._build(slot, dead))
        return (group_id, generation) not in self._moved

    async def status(self, *, fresh: bool = False) -> GroupsStatus:
        """Return what runs and what has failed so far; `fresh` asks the ranks for new numbers."""
        if fresh:
            await asyncio.gather(*(monitor.check_health() for monitor in self._running()))
        return GroupsStatus(
            num_groups=len(self._slots),
            num_ready=self._num_ready,
            failures=tuple(self._failures.texts),
            rank_stats={
                monitor.group.group_id: tuple(rank.stats for rank in monitor.health)
                for monitor in self._running()
                if monitor.health
            },
            set_apart=dict(self._failures.set_apart),
            num_moved=len(self._moved),
        )

    async def expert_load(self) -> ExpertLoad:
        """Sum the tokens that each expert has computed; dead groups count as last read."""
        await asyncio.gather(*(monitor.read_load() for monitor in self._running()))
        return add(monitor.load for monitor in self._monitors)

    async def close(self) -> None:
        """Stop all groups and give their resources back; closing twice is no error."""
        self._stop("the groups were closed")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in self._slots:
            if slot.group is not None:
                slot.group.close()
                slot.clear()
            for group in slot.apart:
                group.close()

    @property
    def _num_ready(self) -> int:
        return len(self._running())

    def _running(self) -> list[GroupMonitor]:
        return [slot.monitor for slot in self._slots if slot.monitor is not None]

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop keeps only weak references, so a task could vanish
        task.add_done_callback(self._end_task)
        return task

    def _end_task(self, task: asyncio.Task[None]) -> None:
        """Stop the job if a task failed: somebody may wait for what it would have done."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("the supervisor of the groups failed", exc_info=error)
            self._stop(f"{type(error).__name__}: {reason_of(error)}")

    async def _build(self, slot: Slot, dead: EngineGroup | None) -> None:
        """Start a group in `slot`: the next generation of `dead`, or the first one."""
        with ExitStack() as undo:
            if dead is not None:
                undo.callback(dead.close)
            if slot.is_given_up:
                await self._until_a_node_comes()
            while self._error is None and slot.group is None:
                try:
                    group = await self._start(slot, dead)
                    undo.pop_all()
                    self._watch(slot, group)
                except GroupError as error:
                    self._note_start_that_failed(slot, dead, error)
                    if slot.is_given_up:
                        await self._until_a_node_comes()
                    else:
                        await asyncio.sleep(_RETRY_AFTER_S)

    def _watch(self, slot: Slot, group: EngineGroup) -> None:
        slot.monitor = GroupMonitor(group, self._spec, self._golden, self._report_death)
        self._monitors.append(slot.monitor)
        slot.is_given_up = False
        self._leases.open(group)
        self._turns.add_ranks(_nodes_of(group))
        self._failures.note_start(group.group_id)
        self._has_begun.set()
        for loop in slot.monitor.loops():
            self._in_background(loop)

    def _unwatch(self, slot: Slot, group: EngineGroup) -> None:
        """Lease a group no longer."""
        slot.clear()
        self._leases.shut(group.group_id)
        self._turns.remove_ranks(_nodes_of(group))

    def _register(self, client: Client) -> None:
        """Note the process of a client; what an earlier process of its actor has is given back."""
        earlier = self._leases.register(client)
        if earlier is not None:
            self._turns.end_all_of(earlier.process_id)
            for monitor in self._running():
                monitor.group.cancel_client(earlier.process_id)

    async def _report_death(self, group: EngineGroup, reason: str) -> None:
        await self.report_failure(group.group_id, group.generation, reason)

    def _note_start_that_failed(
        self, slot: Slot, dead: EngineGroup | None, error: GroupError
    ) -> None:
        """Count the failure, or stop the job, or give the group up if no node has room for it."""
        if isinstance(error, NoRoomError) and self._can_do_without(slot):
            if not slot.is_given_up:
                slot.is_given_up = True
                self._failures.texts.append(f"{error} (the other groups go on)")
            if dead is not None and dead not in slot.apart:
                dead.close()  # what it had on other nodes may be of use to others
        elif self._has_worked:
            self._count(slot, dead, str(error))
        else:
            self._stop(str(error))  # another attempt would most likely fail alike, later

    async def _until_a_node_comes(self) -> None:
        """Wait until the cluster has a node that it did not have, or the job must stop."""
        if self._error is not None:
            return
        if self._arrival is None or self._arrival.done():
            self._arrival = self._in_background(_next_arrival())  # one look for all that wait
        await asyncio.shield(self._arrival)

    def _can_do_without(self, slot: Slot) -> bool:
        """Say whether other groups work, or still load if none has worked yet."""
        if self._has_worked:
            return self._num_ready > 0
        return any(not other.is_given_up for other in self._slots if other is not slot)

    async def _start(self, slot: Slot, dead: EngineGroup | None) -> EngineGroup:
        address = None if self._store is None else self._store.address
        if dead is None:
            generation = slot.next_generation
            group = await EngineGroup.start(self._spec, slot.group_id, address, generation)
        elif dead in slot.apart:
            group = await dead.rebuild(self._spec, address, elsewhere=True)
        else:
            group = await dead.rebuild(self._spec, address)
        with ExitStack() as undo:
            undo.callback(group.close)
            try:
                await self._golden.check(group)
            except DeadGroupError as death:
                raise GroupError(str(death)) from death
            undo.pop_all()
        self._has_worked = True
        return group

    def _count(self, slot: Slot, dead: EngineGroup | None, reason: str) -> None:
        """Count a failure of a group; set the group apart or stop the job for it."""
        self._failures.add(slot.group_id, reason)
        others = [other for other in self._slots if other is not slot and not other.is_given_up]
        if others and self._failures.is_repeated(slot.group_id):
            logger.warning("%s", self._failures.set_group_apart(slot.group_id))
            slot.is_given_up = True
            if dead is not None and dead not in slot.apart:
                dead.kill()
                slot.apart.append(dead)
        excess = self._failures.excess()
        if excess is not None:
            self._stop(excess)

    async def _keep_moving_groups(self) -> None:
        """Move groups as soon as a node of theirs announces its end."""
        while self._error is None:
            await asyncio.sleep(_LOOK_FOR_ENDS_S)
            ending = await asyncio.to_thread(ending_nodes)
            for slot in self._slots:
                nodes = () if slot.group is None else slot.group.nodes
                left_s = [ending[node.node_id] for node in nodes if node.node_id in ending]
                if left_s:
                    self._move(slot, min(left_s))

    def _move(self, slot: Slot, left_s: float) -> None:
        """Start the next generation of a group elsewhere; the old one answers what it has.

        Nothing waits for the old one: by the time it ends, the next one has loaded.
        """
        old = slot.group
        assert old is not None
        logger.warning("group %d is moved, since its node ends in %g s", slot.group_id, left_s)
        self._unwatch(slot, old)
        slot.next_generation = old.generation + 1
        self._moved.add((slot.group_id, old.generation))
        self._in_background(self._let_end(old, min(left_s, _LONGEST_END_S)))
        self._in_background(self._build(slot, None))

    async def _let_end(self, old: EngineGroup, left_s: float) -> None:
        """Close a group when nobody has it any more, or when its time is over."""
        with ExitStack() as undo, suppress(TimeoutError):
            undo.callback(old.close)
            async with asyncio.timeout(left_s):
                await self._leases.until_given_back(old)

    def _stop(self, reason: str) -> None:
        self._error = self._error or reason  # the first reason is the cause of later ones
        self._leases.stop(self._error)
        self._turns.stop(self._error)
        self._has_begun.set()


def _nodes_of(group: EngineGroup) -> Sequence[str]:
    """Return the node of each rank; ranks whose nodes are not known count as on one node."""
    return [node.node_id for node in group.nodes] or ["unknown"]


async def _next_arrival() -> None:
    """Wait until a node comes."""
    known = await asyncio.to_thread(living_nodes)
    while not (now := await asyncio.to_thread(living_nodes)) - known:
        known = now  # so that a node that went and comes again is new
        await asyncio.sleep(_LOOK_FOR_NODES_S)
