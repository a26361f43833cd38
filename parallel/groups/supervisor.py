"""`Supervisor`: the actor that owns all groups of a run.

Groups live outside Ray Data, so a restarted map actor never touches them. The supervisor belongs
to the driver and dies with it; Ray then removes the ranks and their placement groups.

It leases the least-loaded group to whoever asks, and rebuilds a group that is reported dead under a
new generation number; after too many failures everybody gets a `GroupError`, which stops the job.
Drivers and clients reach it through `parallel.groups.client`.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parallel.experts.load import ExpertLoad, add
from parallel.groups.errors import DeadGroupError, GroupError, NoRoomError, reason_of
from parallel.groups.golden import GoldenPrompts
from parallel.groups.group import EngineGroup
from parallel.groups.spec import GroupSpec
from parallel.ranks.worker import Vitals

if TYPE_CHECKING:
    from parallel.ranks.rendezvous import RendezvousStore

_RETRY_AFTER_S = 2.0  # a start that failed
_LOOK_AT_LOAD_S = 30.0  # what a group counted since the last look dies with it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Client:
    """A process that leases groups; a restarted map actor is the same actor in a new process."""

    process_id: str
    actor_id: str | None


@dataclass(frozen=True, kw_only=True)
class GroupsStatus:
    """For progress lines and people."""

    num_groups: int
    num_ready: int
    failures: tuple[str, ...]  # every one so far, oldest first
    rank_stats: Mapping[int, tuple[Mapping[str, float], ...]]  # by group, of each rank, latest


@dataclass(frozen=True)
class _Grant:
    client: Client
    group: EngineGroup
    num_tokens: int
    alone: bool


@dataclass
class _Slot:
    group_id: int
    group: EngineGroup | None = None  # None while there is no running generation
    is_reserved: bool = False  # by a client that wants the group alone
    is_given_up: bool = False  # there was no room for it


class Supervisor:
    """Starts, leases, rebuilds and closes groups.

    build each group --> ready: acquire, release
          ^                |
          +-- report_failure (a new generation, until there were too many failures)

    Everything runs on one event loop, so state changes only between awaits and needs no locks.

    Time limits are `asyncio.timeout`s: `asyncio.wait_for` of Python 3.11 forgets that its task was
    cancelled when the answer comes at the same moment, and `close` would then wait for ever.
    """

    def __init__(self, spec: GroupSpec, num_groups: int, max_group_failures: int) -> None:
        self._spec = spec
        self._max_failures = max_group_failures
        self._slots = [_Slot(group_id) for group_id in range(num_groups)]
        self._grants: dict[int, _Grant] = {}
        self._grant_numbers = itertools.count()
        self._clients: dict[str, Client] = {}  # the latest process of each actor
        self._failures: list[str] = []
        self._error: str | None = None  # why the job must stop
        self._has_worked = False  # some group was ready at some time
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._meeting: RendezvousStore | None = None
        self._golden = GoldenPrompts(spec.golden, spec.golden_tolerance, spec.start_timeout_s)
        self._vitals: dict[int, list[Vitals]] = {}  # the latest, by group
        self._loads: dict[tuple[int, int], ExpertLoad] = {}  # by group and generation

    async def start(self) -> None:
        """Start all groups and return when the first is ready; the others join as they come.

        Raises:
            GroupError: a group failed before any was ready, or there was room for none.
        """
        self._meeting = self._spec.open_store()
        for slot in self._slots:
            self._soon(self._build(slot, None))
        await self._until(lambda: self._num_ready > 0)

    async def acquire(
        self, client: Client, num_tokens: int, *, alone: bool
    ) -> tuple[int, EngineGroup]:
        """Lease the group with the fewest tokens on lease; wait while there is none.

        Args:
            client: who asks; a new process of a known actor takes over from the old one.
            num_tokens: the work that is meant for the group.
            alone: wait until nobody else has the group, and let nobody in before `release`.

        Returns:
            The number of the lease, and its group.

        Raises:
            GroupError: the job must stop.
        """
        self._take_over(client)
        group = await (self._idle_group() if alone else self._best_group())
        number = next(self._grant_numbers)
        self._grants[number] = _Grant(client, group, num_tokens, alone)
        if self._is_replaced(client):  # it died while it waited
            await self.release(number)
            raise GroupError("this client has a successor")
        return number, group

    async def release(self, number: int) -> None:
        """End a lease; one that has ended is no error."""
        self._end(number)
        await self._notify()

    async def report_failure(self, group_id: int, generation: int, reason: str) -> None:
        """Replace a generation that is dead; later reports of the same one change nothing."""
        slot = self._slots[group_id]
        dead = slot.group
        if dead is None or dead.generation != generation:
            return
        slot.group = None
        self._vitals.pop(group_id, None)
        self._count_failure(reason)
        self._soon(self._build(slot, dead))
        await self._notify()

    async def status(self, *, fresh: bool = False) -> GroupsStatus:
        """What runs and what has failed so far; `fresh` asks the ranks in place of remembering."""
        if fresh:
            running = [(slot, slot.group) for slot in self._slots if slot.group is not None]
            await asyncio.gather(*(self._look(slot, group) for slot, group in running))
        return GroupsStatus(
            num_groups=len(self._slots),
            num_ready=self._num_ready,
            failures=tuple(self._failures),
            rank_stats={
                group_id: tuple(rank.stats for rank in ranks)
                for group_id, ranks in self._vitals.items()
            },
        )

    async def expert_load(self) -> ExpertLoad:
        """Tokens that each expert computed for all groups; of dead ones up to the last look."""
        running = [slot.group for slot in self._slots if slot.group is not None]
        await asyncio.gather(*map(self._look_at_load, running))
        return add(self._loads.values())

    async def close(self) -> None:
        """Stop all groups and give back what they had reserved; closing twice is no error."""
        self._stop("the groups were closed")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in self._slots:
            if slot.group is not None:
                slot.group.close()
                slot.group = None
        await self._notify()

    @property
    def _num_ready(self) -> int:
        return sum(slot.group is not None for slot in self._slots)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._end_task)

    def _end_task(self, task: asyncio.Task[None]) -> None:
        """Stop the job when a task broke: whoever waits for what it would have done must know."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("the supervisor of the groups failed", exc_info=error)
            self._stop(f"{type(error).__name__}: {reason_of(error)}")
            self._soon(self._notify())

    async def _build(self, slot: _Slot, dead: EngineGroup | None) -> None:
        """Bring `slot` a running group, the successor of `dead` if there is one."""
        with ExitStack() as undo:
            if dead is not None:
                undo.callback(dead.close)
            while self._error is None and slot.group is None:
                try:
                    slot.group = await self._start(slot.group_id, dead)
                    undo.pop_all()
                    self._soon(self._watch(slot, slot.group))
                    self._soon(self._watch_load(slot, slot.group))
                    if self._spec.golden:
                        self._soon(self._ask_golden(slot, slot.group))
                except GroupError as error:
                    if self._gives_up(slot, error):
                        break
                    await asyncio.sleep(_RETRY_AFTER_S)
        await self._notify()

    async def _watch(self, slot: _Slot, group: EngineGroup) -> None:
        """Look at the ranks again and again; nobody else may notice that one hangs."""
        while slot.group is group:
            await asyncio.sleep(self._spec.heartbeat_s)
            await self._look(slot, group)

    async def _look(self, slot: _Slot, group: EngineGroup) -> None:
        try:
            vitals = await group.check(self._spec)
        except DeadGroupError as death:
            await self.report_failure(group.group_id, group.generation, str(death))
        else:
            if slot.group is group:
                self._vitals[slot.group_id] = vitals

    async def _watch_load(self, slot: _Slot, group: EngineGroup) -> None:
        while slot.group is group:
            await asyncio.sleep(_LOOK_AT_LOAD_S)
            await self._look_at_load(group)

    async def _look_at_load(self, group: EngineGroup) -> None:
        """Note what the experts of a group have computed so far, if it answers."""
        with suppress(DeadGroupError, TimeoutError):
            async with asyncio.timeout(self._spec.heartbeat_timeout_s):
                load = await group.expert_load()
            self._loads[group.group_id, group.generation] = load

    async def _ask_golden(self, slot: _Slot, group: EngineGroup) -> None:
        """See every so many steps that the answers are still right."""
        asked_at = 0
        while slot.group is group:
            await asyncio.sleep(self._spec.heartbeat_s)
            vitals = self._vitals.get(slot.group_id, ())
            num_steps = max((rank.stats["steps"] for rank in vitals), default=0)
            if num_steps < asked_at + self._spec.golden_every_steps:
                continue
            asked_at = num_steps
            try:
                await self._golden.check(group)
            except DeadGroupError as death:
                await self.report_failure(group.group_id, group.generation, str(death))

    def _gives_up(self, slot: _Slot, error: GroupError) -> bool:
        """Take note of a start that failed; the answer is whether to leave it at that."""
        if isinstance(error, NoRoomError) and self._can_do_without(slot):
            slot.is_given_up = True
            self._failures.append(f"{error} (the other groups go on)")
        elif not self._has_worked:
            self._stop(str(error))  # another try would most likely only hide the reason
        else:
            self._count_failure(str(error))
            return False
        return True

    def _can_do_without(self, slot: _Slot) -> bool:
        """Whether other groups work or, before any has worked, still load."""
        if self._has_worked:
            return self._num_ready > 0
        return any(not other.is_given_up for other in self._slots if other is not slot)

    async def _start(self, group_id: int, dead: EngineGroup | None) -> EngineGroup:
        address = None if self._meeting is None else self._meeting.address
        if dead is None:
            group = await EngineGroup.start(self._spec, group_id, address)
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

    def _count_failure(self, reason: str) -> None:
        self._failures.append(reason)
        if len(self._failures) > self._max_failures:
            self._stop(
                f"groups failed {len(self._failures)} times, more than the allowed "
                f"{self._max_failures}; the last failure: {reason}. What is committed is safe. "
                "Find the cause (memory? then fewer sequences at a time), and run the same "
                "command again to continue"
            )

    def _stop(self, reason: str) -> None:
        self._error = self._error or reason  # the first is the one to know

    async def _best_group(self) -> EngineGroup:
        """The group with the fewest tokens on lease, once there is one to have."""
        await self._until(lambda: bool(self._free_slots()))
        slot = min(self._free_slots(), key=self._num_tokens)
        assert slot.group is not None
        return slot.group

    async def _idle_group(self) -> EngineGroup:
        """A group that nobody else has, kept from everybody else."""
        while True:
            await self._until(lambda: bool(self._free_slots()))
            slot = min(self._free_slots(), key=self._num_tokens)
            slot.is_reserved = True
            with ExitStack() as undo:
                undo.callback(setattr, slot, "is_reserved", False)
                await self._until(lambda slot=slot: not (slot.group and self._num_tokens(slot)))
                if slot.group is not None:
                    undo.pop_all()
                    return slot.group

    def _free_slots(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.group and not slot.is_reserved]

    def _num_tokens(self, slot: _Slot) -> int:
        """Tokens on lease at the running generation; those of a dead one are to be done again."""
        return sum(grant.num_tokens for grant in self._grants.values() if grant.group is slot.group)

    def _end(self, number: int) -> None:
        grant = self._grants.pop(number, None)
        if grant is not None and grant.alone:
            self._slots[grant.group.group_id].is_reserved = False

    def _take_over(self, client: Client) -> None:
        """Forget what an earlier process of the same actor had: it is dead."""
        if client.actor_id is None:
            return
        earlier = self._clients.get(client.actor_id)
        self._clients[client.actor_id] = client
        if earlier is None or earlier == client:
            return
        for number in [n for n, grant in self._grants.items() if grant.client == earlier]:
            self._end(number)
        for slot in self._slots:
            if slot.group is not None:
                slot.group.cancel_client(earlier.process_id)

    def _is_replaced(self, client: Client) -> bool:
        return client.actor_id is not None and self._clients[client.actor_id] != client

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; no other coroutine runs between its truth and the return."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._error is not None or condition())
        if self._error is not None:
            raise GroupError(self._error)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
