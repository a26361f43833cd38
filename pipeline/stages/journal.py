"""`Journal`: how the stages tell an `InFlightJournal` of rows, before they work on them."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.output.in_flight import InFlightJournal
from pipeline.output.journal_file import JOURNAL
from pipeline.output.store import Store

_CLOSE_TIMEOUT_S = 30.0


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


@contextmanager
def running_journal(
    store: Store, before: Mapping[int, int], name: str = JOURNAL
) -> Iterator[RemoteJournal]:
    """Run a journal as an actor on this node, so that it lives as long as the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(InFlightJournal)  # Any: its methods get `.remote` at run time
    journal = actor.options(num_cpus=0, scheduling_strategy=here).remote(store, before, name)
    try:
        yield RemoteJournal(journal)
    finally:
        with suppress(RayError):  # after this it writes no more; or it is dead
            ray.get(journal.close.remote(), timeout=_CLOSE_TIMEOUT_S)
        ray.kill(journal)


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
