"""The stages of a fleet: several streams of Ray Data, each with its loop in a process of its own.

    stream 0: read --> prepare --> generate --+
    stream 1: read --> prepare --> generate --+--> the driver commits
    ...

Ray Data's loop takes about 10 ms of a processor for each batch, so one loop would hold up a fleet.
The driver gets from each stream what has come within a second as one table.

A stream runs on the node of the driver and dies with it. If it dies alone the run stops, as if the
driver's own loop had died, and the same command continues it.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Empty, Queue
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError, UserCodeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.nodes import RankNodes
from pipeline.input.plan import RowGroupSplit
from pipeline.output.journal_file import stream_journal
from pipeline.output.store import Store
from pipeline.stages.generate import SharedGroups
from pipeline.stages.journal import Journal, running_journal
from pipeline.stages.sealed import copied, costs_of, seal
from pipeline.stages.workers import CostedRows, StageSpec, Workers

_MAX_ROWS = 1024  # of a table for the driver
_MAX_WAIT_S = 1.0  # of its first row for others
_TABLES_AHEAD = 2  # of each stream, that the driver has not taken yet
_BATCHES_AHEAD = 16  # likewise, within the stream


class Stream:
    """One stream of Ray Data; an actor."""

    def answer(
        self,
        spec: StageSpec,
        splits: Sequence[RowGroupSplit],
        groups: SharedGroups,
        nodes: RankNodes,
        journal: Journal,
        workers: Workers,
    ) -> Iterator[pa.Table]:
        """Run the stages over some rows; yield sealed tables of results as they come."""
        # Imported here: Ray Data takes a second to load, and the driver does not need it.
        from pipeline.stages.ray_data import run_stages

        try:
            for rows, costs in gathered(run_stages(spec, splits, groups, nodes, journal, workers)):
                yield seal(rows, costs)
        except (RayTaskError, UserCodeException) as error:
            # Ray would send the message of its own wrapping alone.
            raise raised_first(error) from None


def run_streams(
    spec: StageSpec,
    splits: Sequence[RowGroupSplit],
    groups: SharedGroups,
    nodes: RankNodes,
    store: Store,
    workers: Workers,
) -> Iterator[CostedRows]:
    """Read, prepare and answer rows in `num_streams` streams; yield results as they come.

    Each stream has a journal of its own in the output `store`.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Stream)  # Any: its methods get `.remote` at run time
    tables: list[Any] = []  # generators of references, one a stream
    with ExitStack() as undo:
        for number, share in enumerate(shares_of(splits, spec.sizing.num_streams)):
            journal = undo.enter_context(running_journal(store, {}, stream_journal(number)))
            stream = actor.options(num_cpus=0, scheduling_strategy=here).remote()
            undo.callback(ray.kill, stream)
            answer = stream.answer.options(_generator_backpressure_num_objects=_TABLES_AHEAD)
            tables.append(answer.remote(spec.of_stream(), share, groups, nodes, journal, workers))
        while tables:
            ready: Any
            (ready,), tables = ray.wait(tables, num_returns=1, fetch_local=False)
            reference = next(ready, None)
            if reference is None:
                continue  # the stream has ended
            tables.append(ready)  # behind the others, so that each has its turn
            table: Any = ray.get(reference)
            yield copied(table), costs_of(table)


def raised_first(error: BaseException) -> BaseException:
    """Return what was raised in a worker, without Ray's wrapping."""
    while isinstance(error, RayTaskError | UserCodeException):
        cause = error.cause if isinstance(error, RayTaskError) else error.__cause__
        if cause is None:
            break
        error = cause
    return error


def shares_of(splits: Sequence[RowGroupSplit], num_shares: int) -> list[list[RowGroupSplit]]:
    """Deal splits out in turn, each to whoever has the fewest rows; nobody gets an empty share."""
    shares: list[list[RowGroupSplit]] = [[] for _ in range(min(num_shares, len(splits)))]
    num_rows = [0] * len(shares)
    for split in splits:
        fewest = min(range(len(shares)), key=num_rows.__getitem__)
        shares[fewest].append(split)
        num_rows[fewest] += split.num_todo
    return shares


def gathered(
    batches: Iterator[CostedRows], max_rows: int = _MAX_ROWS, max_wait_s: float = _MAX_WAIT_S
) -> Iterator[CostedRows]:
    """Make one table of the batches that come one after another within `max_wait_s`.

    It has `max_rows` rows or a batch more. What `batches` raises is raised after all rows before.
    """
    taken: Queue[CostedRows | None] = Queue(_BATCHES_AHEAD)

    def take() -> None:
        try:
            for batch in batches:
                taken.put(batch)
        finally:
            taken.put(None)

    with ThreadPoolExecutor(1, thread_name_prefix="take") as pool:
        ended = pool.submit(take)
        is_ended = False
        while not is_ended:
            tables, costs, is_ended = _next_batches(taken, max_rows, max_wait_s)
            if tables:
                yield pa.concat_tables(tables), costs
        ended.result()


def _next_batches(
    taken: Queue[CostedRows | None], max_rows: int, max_wait_s: float
) -> tuple[list[pa.Table], list[Any], bool]:
    """Return the tables and costs of the next batches, and whether they were the last ones."""
    tables: list[pa.Table] = []
    all_costs: list[Any] = []
    deadline = None
    while sum(table.num_rows for table in tables) < max_rows:
        try:
            batch = taken.get(timeout=deadline and max(0.0, deadline - time.monotonic()))
        except Empty:
            break
        if batch is None:
            return tables, all_costs, True
        deadline = deadline or time.monotonic() + max_wait_s
        rows, costs = batch
        tables.append(rows)
        all_costs += costs
    return tables, all_costs, False
