"""`GroupMonitor`: watches one generation of a group while it serves."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from parallel.experts.load import ExpertLoad
from parallel.groups.errors import DeadGroupError
from parallel.groups.golden import GoldenPrompts
from parallel.groups.group import EngineGroup
from parallel.groups.spec import GroupSpec
from parallel.ranks.worker import RankHealth

# Between two readings of the expert load. A group that dies takes along what it counted since the
# last reading.
_LOAD_INTERVAL_S = 30.0


class GroupMonitor:
    """Asks a group regularly for its health, its expert load and its golden prompts.

    `report_death` is called with the reason when the group is dead.
    """

    def __init__(
        self,
        group: EngineGroup,
        spec: GroupSpec,
        golden: GoldenPrompts,
        report_death: Callable[[EngineGroup, str], Awaitable[None]],
    ) -> None:
        self.group = group
        self.health: list[RankHealth] = []  # the latest of each rank; empty before the first check
        self.load: ExpertLoad = {}  # the latest
        self._spec = spec
        self._golden = golden
        self._report_death = report_death
        self._is_stopped = False

    def loops(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Return the work of this monitor, to run in the background until `stop`."""
        loops = [self._keep_checking_health(), self._keep_reading_load()]
        return [*loops, self._keep_asking_golden()] if self._spec.golden else loops

    def stop(self) -> None:
        """Let the loops end at their next turn."""
        self._is_stopped = True

    async def check_health(self) -> None:
        """Ask all ranks for their health, and report the group if one of them is dead."""
        try:
            self.health = await self.group.check(self._spec)
        except DeadGroupError as death:
            await self._report_death(self.group, str(death))

    async def read_load(self) -> None:
        """Note what the experts of the group have computed so far, if the group answers."""
        with suppress(DeadGroupError, TimeoutError):
            async with asyncio.timeout(self._spec.heartbeat_timeout_s):
                self.load = await self.group.expert_load()

    async def _keep_checking_health(self) -> None:
        """Check the ranks regularly: clients do not notice a rank that hangs, they only wait."""
        while not self._is_stopped:
            await asyncio.sleep(self._spec.heartbeat_s)
            await self.check_health()

    async def _keep_reading_load(self) -> None:
        while not self._is_stopped:
            await asyncio.sleep(_LOAD_INTERVAL_S)
            await self.read_load()

    async def _keep_asking_golden(self) -> None:
        """Check every `golden_every_steps` steps that the ranks still answer correctly."""
        asked_at = 0
        while not self._is_stopped:
            await asyncio.sleep(self._spec.heartbeat_s)
            num_steps = max((rank.stats["steps"] for rank in self.health), default=0)
            if num_steps < asked_at + self._spec.golden_every_steps:
                continue
            asked_at = num_steps
            try:
                await self._golden.check(self.group)
            except DeadGroupError as death:
                await self._report_death(self.group, str(death))
