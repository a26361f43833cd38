"""`InlineBackend`: a whole run in this process, without Ray, by the same stages.

    read, prepare (a thread) --> generate (this thread's event loop) --> engine (a thread)

For small inputs, tests and debuggers. It resumes, counts and commits as a run on Ray does. What Ray
mends elsewhere ends the run here: an engine that dies, or a crash of the process; the same command
continues.
"""

import asyncio
import signal
import threading
from collections import deque
from collections.abc import (
    AsyncIterator,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from parallel.experts.load import ExpertLoad
from parallel.experts.policy import explain
from parallel.groups.errors import DeadGroupError, GroupError
from parallel.groups.supervisor import GroupsStatus
from parallel.ranks.requests import Outcome, Request
from parallel.ranks.worker import DeadEngineError, Rank
from pipeline.cluster.deployment import Deployment
from pipeline.cluster.groups import EngineFactory
from pipeline.config import PipelineConfig
from pipeline.input.plan import RowGroupSplit
from pipeline.monitor.poll import Reporter
from pipeline.output.in_flight import InFlightJournal
from pipeline.run_plan import RunPlan
from pipeline.stages.batching import Room
from pipeline.stages.generate import SharedGroups
from pipeline.stages.journal import InlineJournal, Journal
from pipeline.stages.sizing import choose_sizing
from pipeline.stages.workers import (
    CostedRows,
    GenerateWorker,
    PrepareWorker,
    StageSpec,
    read_splits,
)

_CLIENT = "inline"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
T = TypeVar("T")
_QUEUED_BYTES = 1 << 30  # of prepared rows, as if it were an object store


@dataclass(frozen=True)
class InlineGroup:
    """One rank in a thread of this process, with the methods of `parallel.groups.client.Groups`."""

    rank: Rank  # its engine may still load
    runner: asyncio.Runner  # of the event loop in which requests are answered
    room: Room  # for rows at the rank

    @asynccontextmanager
    async def turn(self, num_requests: int) -> AsyncIterator["InlineGroup"]:
        """Wait for room for so many rows, and yield this group."""
        async with self.room.hold(num_requests):
            yield self

    @asynccontextmanager
    async def lease(
        self, num_tokens: int, *, exclusive: bool = False
    ) -> AsyncIterator["InlineGroup"]:
        """Yield this group; nobody else can have it, and what it dies of ends the run."""
        yield self

    def take_crossed_bytes(self) -> int:
        """Return 0, since everything is on one node."""
        return 0

    async def generate(
        self, sets: Sequence[Sequence[Request]]
    ) -> list[list[Outcome | DeadGroupError]]:
        """Answer all requests.

        Raises:
            GroupError: the engine is dead.
        """
        requests = [request for each in sets for request in each]
        with _death_as_group_error():
            answers = iter(await self.rank.generate(_CLIENT, requests))
        return [[next(answers) for _ in each] for each in sets]

    def status(self, *, fresh: bool = False) -> GroupsStatus:
        """Return the numbers of the rank; called in any thread without an event loop."""
        with _death_as_group_error():
            stats = asyncio.run(self.rank.health()).stats
        return GroupsStatus(num_groups=1, num_ready=1, failures=(), rank_stats={0: (stats,)})

    def expert_load(self) -> ExpertLoad:
        """Return the tokens that each expert has computed."""
        with _death_as_group_error():
            return self.runner.run(self.rank.expert_load())

    def close(self) -> None:
        """Stop after the current step."""
        self.runner.run(self.rank.close())


@contextmanager
def _death_as_group_error() -> Iterator[None]:
    try:
        yield
    except DeadEngineError as error:
        raise GroupError(str(error)) from error


class InlineBackend:
    """Carries out a run in this process, in the event loop of `runner`, which the caller closes.

    The constructor raises a `ValueError` if several ranks were asked for, or a GPU without any.
    """

    def __init__(
        self, plan: RunPlan, engine_factory: EngineFactory, runner: asyncio.Runner
    ) -> None:
        self._plan = plan
        self._engine_factory = engine_factory
        self._runner = runner
        self.deployment = inline_deployment(plan.config).explained(plan.config)
        self.sizing = choose_sizing(
            plan.config,
            self.deployment,
            num_rows=plan.rows.num_todo,
            num_cpus=1,
            store_bytes=_QUEUED_BYTES,
        )

    def start_groups(self) -> InlineGroup:
        """Load the engine in a thread of its own."""
        config = self._plan.config
        engine = self.deployment.engine_of(config.engine)
        rank = Rank(
            partial(self._engine_factory, config.checkpoint, engine, config.exchange, None),
            self.sizing.admission,
        )
        group = InlineGroup(rank, self._runner, Room(self.sizing.rows_in_flight))
        try:
            self._runner.run(rank.ready())
        except BaseException:
            group.close()
            raise
        return group

    @contextmanager
    def journal(self, before: Mapping[int, int]) -> Iterator[InlineJournal]:
        """Keep the journal in this process."""
        journal = InFlightJournal(self._plan.store, before)
        try:
            yield InlineJournal(journal, self._runner)
        finally:
            self._runner.run(journal.close())

    def results(
        self,
        splits: Sequence[RowGroupSplit],
        groups: SharedGroups,
        journal: Journal,
        *,
        one_by_one: bool = False,
    ) -> Iterator[CostedRows]:
        """Run the stages; rows come out in the order of the input."""
        spec = StageSpec.of(self._plan, self.sizing, one_by_one=one_by_one)
        loop = self._runner.get_loop()
        generate = GenerateWorker(spec, groups, journal)
        prepared = _prepared(spec, splits, journal)
        preparing: asyncio.Task[CostedRows | None] = loop.create_task(_next(prepared))
        pending: deque[asyncio.Task[CostedRows]] = deque()
        try:
            while batch := run_undisturbed(self._runner, _result(preparing)):
                preparing = loop.create_task(_next(prepared))
                pending.append(loop.create_task(generate(*batch)))
                while pending and (
                    pending[0].done() or len(pending) > self.sizing.batches_per_client
                ):
                    yield run_undisturbed(self._runner, _result(pending.popleft()))
            while pending:
                yield run_undisturbed(self._runner, _result(pending.popleft()))
        finally:
            # A thread cannot be stopped, and what it prepares may wait for this event loop.
            run_undisturbed(self._runner, _end(preparing, pending))
            prepared.close()

    def reporters(self) -> list[Reporter]:
        """Return no reporters beside the display."""
        return []

    def spilled_bytes(self) -> int:
        """Return 0, since there is no object store."""
        return 0


def _prepared(
    spec: StageSpec, splits: Iterable[RowGroupSplit], journal: Journal
) -> Generator[CostedRows, None, None]:
    """Read and prepare; runs in one thread at a time, beside the event loop."""
    prepare = PrepareWorker(spec, journal)
    try:
        for rows, costs in read_splits(spec, splits):
            yield from prepare(rows, costs)
    finally:
        prepare.close()


async def _next(prepared: Iterator[CostedRows]) -> CostedRows | None:
    """Read and prepare the next batch in a thread; None after the last."""
    return await asyncio.to_thread(next, prepared, None)


async def _result(task: asyncio.Task[T]) -> T:
    """Wait for a task; Ctrl-C ends the wait and leaves the task to `_end`."""
    return await asyncio.shield(task)


def run_undisturbed(runner: asyncio.Runner, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run in the event loop, and let signals end the wait; what they raise is raised after it.

    An exception in the midst of the loop would lose the call that it was about to make, and a
    thread could wait for that without end.
    """
    task = runner.get_loop().create_task(coroutine)
    caught: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append((number, frame))
        runner.get_loop().call_soon_threadsafe(task.cancel)

    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    own = {number: each for number, each in handlers.items() if callable(each)}
    for number in own if threading.current_thread() is threading.main_thread() else ():
        signal.signal(number, note)
    try:
        return runner.get_loop().run_until_complete(task)
    finally:
        for number, handler in own.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)
        if caught:
            own[signal.Signals(caught[0][0])](*caught[0])


async def _end(
    preparing: asyncio.Task[CostedRows | None], pending: Iterable[asyncio.Task[CostedRows]]
) -> None:
    """Forget what is being answered, and wait for what is being prepared."""
    for task in pending:
        task.cancel()
    await asyncio.gather(preparing, *pending, return_exceptions=True)


def inline_deployment(config: PipelineConfig) -> Deployment:
    """One rank on this machine's first GPU, or on its CPU.

    Raises:
        ValueError: several ranks were asked for, or a GPU where there is none.
    """
    import torch

    asked = {"--groups": config.num_groups, "--expert-parallel": config.expert_parallel}
    for name, value in asked.items():
        if value not in (None, 1):
            raise ValueError(
                f"--inline runs one copy of the model in one process, got {name} {value}; leave "
                f"out {name}, or --inline"
            )
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ValueError("device=cuda, but there is no GPU here; use --device auto or cpu")
    device = "cuda" if has_gpu and config.device != "cpu" else "cpu"
    return Deployment(
        device=device,
        num_groups=1,
        num_ranks=1,
        why="--inline runs everything in this process, without Ray",
        dispatch=explain(config.exchange, 1, device),
    )
