"""`Groups`: the groups of a run, for the driver that owns them and for the clients that use them.

    groups = Groups.start(spec, num_groups=4, max_group_failures=4)       # driver
    async with groups.turn(num_requests) as turn:                         # any process
        async with turn.lease(num_tokens) as lease:
            answers = await lease.generate([requests])
    groups.close()                                                        # driver

Prompts and completions travel directly between client and rank; the supervisor sees only turns and
leases.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from parallel.experts.load import ExpertLoad
from parallel.groups.errors import GONE, DeadGroupError, GroupError, MovedGroupError
from parallel.groups.group import EngineGroup
from parallel.groups.leases import Client
from parallel.groups.spec import GroupSpec
from parallel.groups.start import MAX_CONCURRENCY
from parallel.groups.supervisor import GroupsStatus, Supervisor
from parallel.ranks.requests import Outcome, Request

_CLOSE_TIMEOUT_S = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """The right to use a group until its `with` ends."""

    groups: "Groups"
    group: EngineGroup

    async def generate(
        self, sets: Sequence[Sequence[Request]]
    ) -> list[list[Outcome | DeadGroupError]]:
        """Answer sets of requests; each set goes to one rank, and each rank is called once.

        The answers have the order of the requests. Requests whose rank died have the
        `DeadGroupError` instead, or a `MovedGroupError` if that was no failure. The supervisor
        knows of the death: lease a group again.
        Raises GroupError: the job must stop.
        """
        with ExitStack() as loads:
            ranks: list[int] = []  # of each set
            for requests in sets:
                num_tokens = sum(request.num_tokens for request in requests)
                load = self.groups.choose_rank(self.group, num_tokens)
                ranks.append(loads.enter_context(load))
                self.groups.count_crossing(self.group, ranks[-1], requests)
            requests_of: dict[int, list[Request]] = {rank: [] for rank in ranks}
            for rank, requests in zip(ranks, sets, strict=True):
                requests_of[rank].extend(requests)
            answers = await asyncio.gather(*starmap(self._ask, requests_of.items()))
        # A rank answers in the order in which it was asked. So if the sets are taken in order, the
        # next answers of the rank of a set are the answers of this set.
        answers_of = dict(zip(requests_of, map(iter, answers), strict=True))
        return [
            [next(answers_of[rank]) for _ in requests]
            for rank, requests in zip(ranks, sets, strict=True)
        ]

    async def _ask(self, rank: int, requests: Sequence[Request]) -> list[Outcome | DeadGroupError]:
        try:
            return [*await self.group.generate(self.groups.client.process_id, requests, rank)]
        except DeadGroupError as death:
            is_failure = await self.groups.report_failure(self.group, str(death))
            answer = death if is_failure else MovedGroupError(str(death))
            return [answer] * len(requests)


@dataclass(frozen=True)
class Turn:
    """Room for requests at the ranks of a node, until its `with` ends."""

    groups: "Groups"
    node_id: str

    def lease(
        self, num_tokens: int, *, exclusive: bool = False
    ) -> AbstractAsyncContextManager[Lease]:
        """Lease a group, as `Groups.lease`."""
        return self.groups.lease(num_tokens, exclusive=exclusive, node_id=self.node_id)


class Groups:
    """A picklable handle of all groups. Every process that unpickles it is a client of its own."""

    def __init__(self, supervisor: Any) -> None:
        context = ray.get_runtime_context()
        self.client = Client(context.get_worker_id(), context.get_actor_id())
        self.node_id: str = context.get_node_id()
        self._supervisor = supervisor
        self._crossed_bytes = 0
        self._next_turn = asyncio.Lock()
        # (group, generation, rank) -> tokens that this client has there.
        self._tokens: Counter[tuple[int, int, int]] = Counter()

    def __reduce__(self) -> tuple[type["Groups"], tuple[Any]]:
        return Groups, (self._supervisor,)

    @classmethod
    def start(cls, spec: GroupSpec, *, num_groups: int, max_group_failures: float) -> Self:
        """Start the groups of a run from its driver; return when the first is ready.

        `max_group_failures` is a rate, a group and day; see `Failures`.
        Raises GroupError: no group could be started; nothing is left behind.
        """
        if num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {num_groups}")
        # On the driver's node, so that the loss of another node does not end the supervisor.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Supervisor)  # Any: Ray adds `.remote` to the methods at run time
        options = actor.options(
            num_cpus=0, max_concurrency=MAX_CONCURRENCY, scheduling_strategy=here
        )
        groups = cls(options.remote(spec, num_groups, max_group_failures))
        with ExitStack() as undo, _plain_errors():
            undo.callback(groups.close)
            ray.get(groups._supervisor.start.remote())
            undo.pop_all()
        return groups

    def status(self, *, fresh: bool = False) -> GroupsStatus:
        """Return what runs and what has failed so far; see `Supervisor.status`."""
        with _plain_errors():
            return ray.get(self._supervisor.status.remote(fresh=fresh))

    def expert_load(self) -> ExpertLoad:
        """Return the tokens that each expert has computed so far; see `Supervisor.expert_load`."""
        with _plain_errors():
            return ray.get(self._supervisor.expert_load.remote())

    def close(self) -> None:
        """Stop all groups and remove their placement groups; closing twice is no error.

        A supervisor that does not answer is killed, and its ranks with it. Then their resources
        become free only when this driver ends, and a warning says so.
        """
        try:
            ray.get(self._supervisor.close.remote(), timeout=_CLOSE_TIMEOUT_S)
        except GONE:
            pass  # the supervisor is gone, and its ranks with it
        except GetTimeoutError:
            logger.warning(
                "the supervisor of the groups did not close them in %g s and is killed; their "
                "resources stay reserved until this driver ends",
                _CLOSE_TIMEOUT_S,
            )
        ray.kill(self._supervisor)

    @asynccontextmanager
    async def turn(self, num_requests: int) -> AsyncIterator[Turn]:
        """Wait for room for so many requests, and keep it until the `with` ends.

        It is on the node of this process, if that has room, or on one that runs dry.
        Raises GroupError: the job must stop.
        """
        # One call at a time, since the supervisor can hold only so many calls that wait; it serves
        # the clients of a node in their order anyway.
        async with self._next_turn:
            with _plain_errors():
                number, node_id = await self._supervisor.take_turn.remote(
                    self.client, self.node_id, num_requests
                )
        try:
            yield Turn(self, node_id)
        finally:
            self._supervisor.end_turn.remote(number)

    @asynccontextmanager
    async def lease(
        self, num_tokens: int, *, exclusive: bool = False, node_id: str | None = None
    ) -> AsyncIterator[Lease]:
        """Lease a group for `num_tokens` of work, until the `with` ends.

        It is the least-loaded group of a node, unless others have much less; see `FreeGroups`. With
        `exclusive`, wait for a group that nobody else uses, and keep others out of it.
        Raises GroupError: the job must stop.
        """
        with _plain_errors():
            number, group = await self._supervisor.acquire.remote(
                self.client, num_tokens, exclusive=exclusive, node_id=node_id
            )
        try:
            yield Lease(self, group)
        finally:
            self._supervisor.release.remote(number)

    @contextmanager
    def choose_rank(self, group: EngineGroup, num_tokens: int) -> Iterator[int]:
        """Choose the rank with the fewest of this client's tokens, and add `num_tokens` to it.

        A rank on the node of this client is chosen while it has at most `num_tokens` more. The
        tokens count until the `with` ends. Every client keeps the ranks level with its own
        requests, so all clients together keep them level too, and no client has to ask others.
        """
        keys = [(group.group_id, group.generation, rank) for rank in range(len(group.ranks))]
        key = min(keys, key=self._tokens.__getitem__)
        near = [each for each in keys if self._is_near(group, each[-1])]
        if near:
            nearest = min(near, key=self._tokens.__getitem__)
            if self._tokens[nearest] <= self._tokens[key] + num_tokens:
                key = nearest
        self._tokens[key] += num_tokens
        try:
            yield key[-1]
        finally:
            self._tokens[key] -= num_tokens
            if not self._tokens[key]:
                del self._tokens[key]

    def count_crossing(self, group: EngineGroup, rank: int, requests: Sequence[Request]) -> None:
        """Count the pixels of requests, which show the same ones, if they go to another node."""
        if group.nodes and not self._is_near(group, rank):
            self._crossed_bytes += requests[0].prompt.patches.nbytes

    def take_crossed_bytes(self) -> int:
        """Return the bytes that went to other nodes from this process, since the last call."""
        crossed, self._crossed_bytes = self._crossed_bytes, 0
        return crossed

    def _is_near(self, group: EngineGroup, rank: int) -> bool:
        """Say whether a rank is known to be on the node of this process."""
        return bool(group.nodes) and group.nodes[rank].node_id == self.node_id

    async def report_failure(self, group: EngineGroup, reason: str) -> bool:
        """Ask the supervisor to replace a dead generation, or raise GroupError if it is gone.

        Return False if that is no failure; see `Supervisor.report_failure`.
        """
        with _plain_errors():
            return await self._supervisor.report_failure.remote(
                group.group_id, group.generation, reason
            )


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn what Ray raises for a call of the supervisor into `GroupError`."""
    try:
        yield
    except GONE as error:
        raise GroupError(
            "the supervisor of the groups is gone, with its node or because its process was "
            "killed; run the same command again to continue"
        ) from error
    except RayTaskError as error:
        if isinstance(error.cause, GroupError):
            raise GroupError(str(error.cause)) from None
        raise
