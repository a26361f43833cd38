"""All stages of a run of a few rows, in one worker without Ray Data.

    read, prepare (a thread) --> generate (the event loop) --> the driver commits

Ray Data starts a process for each stage and three of its own, each of which imports the pipeline
again. That takes longer than to answer a few rows. Here one actor starts while the groups do. Ray
restarts it when it dies and runs its task again, which yields the same batches, as with Ray Data.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import ray

from pipeline.input.plan import RowGroupSplit
from pipeline.run_plan import RunPlan
from pipeline.stages.generate import SharedGroups
from pipeline.stages.journal import Journal
from pipeline.stages.workers import (
    CostedRows,
    GenerateWorker,
    PrepareWorker,
    StageSpec,
    read_splits,
)

# They are prepared one after another, so with many more a processor for each would win.
_FEW_ROWS = 4
_NUM_CPUS = 0.25  # what Ray accounts for, so that a cluster of one CPU has room for a rank too


def is_few(plan: RunPlan) -> bool:
    """Tell whether one worker answers the rows of a run soonest.

    A window is as much work as a row, and nobody knows how many windows a row has. Rows with which
    runs were killed get workers that stand apart.
    """
    rows = plan.rows
    has_windows = plan.config.instructions.windows is not None
    return rows.num_todo <= _FEW_ROWS and not rows.quarantined and not has_windows


class FewRowsWorker:
    """Reads, prepares and answers rows; an async actor, which imports all it needs as it starts."""

    def __init__(self, spec: StageSpec, journal: Journal) -> None:
        self._spec, self._journal = spec, journal
        self._prepare = PrepareWorker(spec, journal)

    async def answer(
        self, splits: Sequence[RowGroupSplit], groups: SharedGroups
    ) -> AsyncIterator[CostedRows]:
        """Yield batches of results in the order of the input, so that a retry yields the same."""
        generate = GenerateWorker(self._spec, groups, self._journal)
        batches = self._prepared(splits)
        pending: deque[asyncio.Task[CostedRows]] = deque()
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            pending.append(asyncio.create_task(generate(*batch)))
            while pending and pending[0].done():
                yield await pending.popleft()
        while pending:
            yield await pending.popleft()

    def _prepared(self, splits: Sequence[RowGroupSplit]) -> Iterator[CostedRows]:
        for rows, costs in read_splits(self._spec, splits):
            yield from self._prepare(rows, costs)


def start_worker(spec: StageSpec, journal: Journal) -> Any:
    """Start the worker; the handle returns at once. It ends with `ray.kill`."""
    actor: Any = ray.remote(FewRowsWorker)  # Any: its methods get `.remote` at run time
    options = actor.options(num_cpus=_NUM_CPUS, max_restarts=-1, max_task_retries=-1)
    return options.remote(spec, journal)


def run_few(
    worker: Any, splits: Sequence[RowGroupSplit], groups: SharedGroups
) -> Iterator[CostedRows]:
    """Let the worker answer the rows; yield each batch as it comes."""
    for batch in worker.answer.remote(splits, groups):
        yield ray.get(batch)
