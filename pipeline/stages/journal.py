"""`Journal`: how the stages tell an `InFlightJournal` of rows, before they work on them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import ray

from pipeline.output.in_flight import InFlightJournal


@dataclass(frozen=True)
class RemoteJournal:
    """Tells an `InFlightJournal` that is a Ray actor."""

    actor: Any  # its handle

    def start_preparing(self, ids: pa.Array) -> int:
        """Note rows; return how many processes have died in this run that prepared one of them."""
        return cast(int, ray.get(self.actor.start.remote(ids, "prepare")))

    def end_preparing(self, ids: pa.Array) -> None:
        """Forget rows that are prepared; calls of one process reach the actor in their order."""
        self.actor.end.remote(ids, "prepare")

    @asynccontextmanager
    async def generating(self, ids: pa.Array) -> AsyncIterator[None]:
        """Note rows for the time of an `async with`; one that raises leaves them noted."""
        await self.actor.start.remote(ids, "generate")
        yield
        self.actor.end.remote(ids, "generate")

    def begin_quarantine(self) -> None:
        """From now on, let a stage begin rows only when no other rows are being worked on."""
        ray.get(self.actor.begin_quarantine.remote())


@dataclass(frozen=True)
class InlineJournal:
    """Tells an `InFlightJournal` in the event loop of an inline run, as `RemoteJournal` does."""

    journal: InFlightJournal
    runner: asyncio.Runner

    def start_preparing(self, ids: pa.Array) -> int:
        """Note rows; called in the thread that prepares."""
        start = self.journal.start(ids, "prepare")
        return asyncio.run_coroutine_threadsafe(start, self.runner.get_loop()).result()

    def end_preparing(self, ids: pa.Array) -> None:
        """Forget rows that are prepared; called in the thread that prepares."""
        end = self.journal.end(ids, "prepare")
        asyncio.run_coroutine_threadsafe(end, self.runner.get_loop()).result()

    @asynccontextmanager
    async def generating(self, ids: pa.Array) -> AsyncIterator[None]:
        """Note rows for the time of an `async with`."""
        await self.journal.start(ids, "generate")
        yield
        await self.journal.end(ids, "generate")

    def begin_quarantine(self) -> None:
        """Quarantine the rows to come; called between two runs of the event loop."""
        self.runner.run(self.journal.begin_quarantine())


Journal = RemoteJournal | InlineJournal
