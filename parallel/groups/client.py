"""`Groups`: the groups of a run, seen from the driver that owns them and the clients they serve.

    groups = Groups.start(spec, num_groups=4, max_group_failures=16)      # driver
    async with groups.lease(num_tokens) as lease:                         # any process
        answers = await lease.generate([requests])
    groups.close()                                                        # driver

Prompts and completions travel between client and rank; the supervisor sees leases only.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from parallel.experts.load import ExpertLoad
from parallel.groups.errors import GONE, DeadGroupError, GroupError
from parallel.groups.group import EngineGroup
from parallel.groups.spec import GroupSpec
from parallel.groups.start import MAX_CONCURRENCY
from parallel.groups.supervisor import Client, GroupsStatus, Supervisor
from parallel.ranks.worker import Outcome, Request

_CLOSE_TIMEOUT_S = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """The right to use a group until the end of its `with`."""

    groups: "Groups"
    group: EngineGroup

    async def generate(
        self, sets: Sequence[Sequence[Request]]
    ) -> list[list[Outcome | DeadGroupError]]:
        """Answer requests, those of a set on the same rank, with one call of each rank.

        Returns:
            The answers in their order; in place of those that a dead rank took along its death,
            which the supervisor knows of: lease again.

        Raises:
            GroupError: the job must stop.
        """
        sets_of: dict[int, list[int]] = {}
        with ExitStack() as loads:
            for number, requests in enumerate(sets):
                num_tokens = sum(request.num_tokens for request in requests)
                load = self.groups.least_loaded_rank(self.group, num_tokens)
                sets_of.setdefault(loads.enter_context(load), []).append(number)
            answers = await asyncio.gather(
                *(
                    self._ask(rank, [request for number in numbers for request in sets[number]])
                    for rank, numbers in sets_of.items()
                )
            )
        answered: dict[int, list[Outcome | DeadGroupError]] = {}
        for numbers, of_rank in zip(sets_of.values(), map(iter, answers), strict=True):
            for number in numbers:
                answered[number] = list(islice(of_rank, len(sets[number])))
        return [answered[number] for number in range(len(sets))]

    async def _ask(self, rank: int, requests: Sequence[Request]) -> list[Outcome | DeadGroupError]:
        try:
            return [*await self.group.generate(self.groups.client.process_id, requests, rank)]
        except DeadGroupError as death:
            await self.groups.report_failure(self.group, str(death))
            return [death] * len(requests)


class Groups:
    """A picklable handle; every process that unpickles it is a client of its own."""

    def __init__(self, supervisor: Any) -> None:
        context = ray.get_runtime_context()
        self.client = Client(context.get_worker_id(), context.get_actor_id())
        self._supervisor = supervisor
        self._tokens: Counter[tuple[int, int, int]] = Counter()  # group, generation, rank

    def __reduce__(self) -> tuple[type["Groups"], tuple[Any]]:
        return Groups, (self._supervisor,)

    @classmethod
    def start(cls, spec: GroupSpec, *, num_groups: int, max_group_failures: int) -> Self:
        """Start the groups of a run from its driver; returns when the first is ready.

        Raises:
            ValueError: there must be at least one group.
            GroupError: no group could be started; nothing is left behind.
        """
        if num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {num_groups}")
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Supervisor)  # Any: its methods get their `.remote` at run time
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
        """What runs and what has failed so far; as `Supervisor.status`."""
        with _plain_errors():
            return ray.get(self._supervisor.status.remote(fresh=fresh))

    def expert_load(self) -> ExpertLoad:
        """Tokens that each expert has computed so far, as `Supervisor.expert_load`."""
        with _plain_errors():
            return ray.get(self._supervisor.expert_load.remote())

    def close(self) -> None:
        """Stop all groups and remove their placement groups; closing twice is no error.

        A supervisor that does not answer is killed, and the ranks with it; what they had reserved
        is then free when this driver ends, and a warning says so.
        """
        try:
            ray.get(self._supervisor.close.remote(), timeout=_CLOSE_TIMEOUT_S)
        except GONE:
            pass  # it is gone
        except GetTimeoutError:
            logger.warning(
                "the supervisor of the groups did not close them in %g s and is killed; what they "
                "had reserved stays so until this driver ends",
                _CLOSE_TIMEOUT_S,
            )
        ray.kill(self._supervisor)

    @asynccontextmanager
    async def lease(self, num_tokens: int, *, alone: bool = False) -> AsyncIterator[Lease]:
        """Lease the least-loaded group for `num_tokens` of work, or a group of one's own.

        Raises:
            GroupError: the job must stop.
        """
        with _plain_errors():
            number, group = await self._supervisor.acquire.remote(
                self.client, num_tokens, alone=alone
            )
        try:
            yield Lease(self, group)
        finally:
            self._supervisor.release.remote(number)

    @contextmanager
    def least_loaded_rank(self, group: EngineGroup, num_tokens: int) -> Iterator[int]:
        """The rank with the fewest of this client's tokens; it has `num_tokens` more meanwhile.

        Every client keeps the ranks level with its own requests, so together they are level too.
        """
        keys = [(group.group_id, group.generation, rank) for rank in range(len(group.ranks))]
        key = min(keys, key=self._tokens.__getitem__)
        self._tokens[key] += num_tokens
        try:
            yield key[-1]
        finally:
            self._tokens[key] -= num_tokens
            if not self._tokens[key]:
                del self._tokens[key]

    async def report_failure(self, group: EngineGroup, reason: str) -> None:
        """Have the supervisor replace a dead generation.

        Raises:
            GroupError: the supervisor is gone.
        """
        with _plain_errors():
            await self._supervisor.report_failure.remote(group.group_id, group.generation, reason)


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
