"""The stages of a run as one stream of Ray Data.

    read --> prepare --> generate --> (the driver commits)
    tasks    actors      clients of
                         the groups

Rows stay on the node that prepares them: each node with ranks has a client, Ray Data gives a batch
to the client where it lies, and the client gets groups of its node (`parallel.groups.free_groups`).

Ray Data sees each batch of rows as one row of bytes (`seal`). It would cut and join blocks by their
size; sealed, a batch stays the unit of work, of retry and of output from its read to its part, a
retried task gives as many blocks as the first one, and no column type of the input has to survive a
conversion. What a stage asks of Ray is fractional, so that a cluster of one CPU can run them all.
"""

import json
import logging
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata

from pipeline.cluster.nodes import RankNodes
from pipeline.cluster.processes import lower_priority
from pipeline.input.plan import RowGroupSplit, batched_splits
from pipeline.monitor.stage_costs import Cost
from pipeline.stages.generate import SharedGroups
from pipeline.stages.journal import Journal
from pipeline.stages.sizing import Sizing
from pipeline.stages.workers import (
    CostedRows,
    GenerateWorker,
    PrepareWorker,
    StageSpec,
    read_splits,
)

# Stages that ask for the same are fused: one actor would then read and prepare a whole row group.
_READ_CPUS = 0.2
_PREPARE_CPUS = 0.25
# A client waits for the engines, which have reserved theirs. Ray places actors that ask for nothing
# at random; those that ask for a little it spreads evenly over the nodes.
_CLIENT_CPUS = 0.001
_MAX_READERS = 2
# Of a task. Ray ends workers that wait for the next task, and starting others takes seconds of a
# processor; but more rows would have to be read again when a node is lost.
_ROWS_PER_READ = 256
_SLICES_PER_READ = 16  # or so many, where a slice has many rows
# Ray Data makes an object of each task before the first one begins, which takes a fraction of a
# millisecond and some kilobytes each.
_MAX_READS = 4096


def run_stages(
    spec: StageSpec,
    splits: Sequence[RowGroupSplit],
    groups: SharedGroups,
    nodes: RankNodes,
    journal: Journal,
) -> Iterator[CostedRows]:
    """Read, prepare and answer rows as one stream of Ray Data."""
    sizing = spec.sizing
    reads = batched_splits(splits, rows_per_read(splits, sizing.read_rows))
    with _settings(sizing, keep_order=spec.config.keep_order), _quiet():
        rows = ray.data.read_datasource(
            _Rows(spec, reads),
            num_cpus=_READ_CPUS,
            concurrency=min(_MAX_READERS, len(reads)),
            override_num_blocks=len(reads),  # else Ray Data would cut and join the tasks
        )
        rows = rows.map_batches(
            _Preparer,
            fn_constructor_args=(spec, journal),
            batch_size=None,  # a block as it is
            batch_format="pyarrow",
            num_cpus=_PREPARE_CPUS,
            compute=ActorPoolStrategy(min_size=sizing.min_preparers, max_size=sizing.num_preparers),
        )
        rows = rows.map_batches(
            _Generator,
            fn_constructor_args=(spec, groups, journal),
            batch_size=None,  # a block as it is
            batch_format="pyarrow",
            num_cpus=_CLIENT_CPUS,
            label_selector=nodes.selector,
            compute=ActorPoolStrategy(
                size=sizing.num_clients,
                max_concurrent_calls_per_actor=sizing.batches_per_client,
                max_tasks_in_flight_per_actor=sizing.batches_given_to_client,
            ),
        )
        # A batch that waits here is one that the stages do not make meanwhile, so none is fetched
        # ahead.
        blocks: Iterator[Any] = iter(
            rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        )
        for block in blocks:
            yield _copied(block), costs_of(block)


def rows_per_read(splits: Sequence[RowGroupSplit], read_rows: int) -> int:
    """Choose how many rows a task reads; `read_rows` is how many it takes at a time."""
    num_rows = sum(split.num_todo for split in splits)
    return max(_ROWS_PER_READ, _SLICES_PER_READ * read_rows, -(-num_rows // _MAX_READS))


@contextmanager
def _settings(sizing: Sizing, *, keep_order: bool) -> Iterator[None]:
    """Settings of Ray Data for what is made in the `with`; the process keeps its own."""
    with warnings.catch_warnings():
        # Copying a context sets its deprecated attributes too.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.data")
        context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # of bytes: each sealed batch is a block of its own
    # Ray Data looks at its workers ten times a second; with the two blocks that it lets them be
    # ahead, each would give twenty batches a second at most.
    context._max_num_blocks_in_streaming_gen_buffer = sizing.batches_ahead
    context.memory_usage_poll_interval_s = None  # a thread for each task; nobody asks
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # captions may be long, engines slow to load
    context.raise_original_map_exception = True  # else its message would be lost
    context.issue_detectors_config.detectors = []
    # A preparer that waits for the engines is kept: to start another later takes seconds of a
    # processor, and would happen over and over.
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
    context.execution_options.preserve_order = keep_order
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=sizing.max_queued_bytes
    )
    with DataContext.current(context):
        yield


def seal(rows: pa.Table, costs: Sequence[Cost] = ()) -> pa.Table:
    """Make one row of a table, and what it has cost; its bytes are copied once."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    content = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, content.size], np.int64))
    sealed = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, content])
    return pa.table({"rows": sealed, "costs": [json.dumps([asdict(cost) for cost in costs])]})


def unseal(block: pa.Table) -> pa.Table:
    """The table that `seal` was given, without a copy."""
    return pa.ipc.open_stream(block["rows"][0].as_buffer()).read_all()


def _copied(block: pa.Table) -> pa.Table:
    """As `unseal`, but what waits for its commit does not fill the object store."""
    return pa.ipc.open_stream(pa.py_buffer(block["rows"][0].as_py())).read_all()


def costs_of(block: pa.Table) -> list[Cost]:
    """The costs that `seal` was given."""
    return [Cost(**cost) for cost in json.loads(block["costs"][0].as_py())]


class _Rows(Datasource):
    def __init__(self, spec: StageSpec, reads: Sequence[Sequence[RowGroupSplit]]) -> None:
        self._spec = spec
        self._reads = reads

    def get_name(self) -> str:
        return "Rows"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(partial(_read, self._spec, splits), metadata) for splits in self._reads]


def _read(spec: StageSpec, splits: Sequence[RowGroupSplit]) -> Iterator[pa.Table]:
    return (seal(*costed) for costed in read_splits(spec, splits))


class _Preparer:
    """A `PrepareWorker` in an actor of Ray Data."""

    def __init__(self, spec: StageSpec, journal: Journal) -> None:
        lower_priority()
        self._work = PrepareWorker(spec, journal)
        self._node = ray.get_runtime_context().get_node_id()

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for rows, costs in self._work(unseal(block), costs_of(block)):
            costs[-1].node = self._node
            yield seal(rows, costs)


class _Generator:
    """A `GenerateWorker` in an actor of Ray Data."""

    def __init__(self, spec: StageSpec, groups: SharedGroups, journal: Journal) -> None:
        self._work = GenerateWorker(spec, groups, journal)
        self._node = ray.get_runtime_context().get_node_id()

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        prepared = costs_of(block)
        rows, costs = await self._work(unseal(block), prepared)
        costs[-1].num_bytes = block.nbytes
        if prepared[-1].node != self._node:
            costs[-1].crossed_bytes += block.nbytes
        yield seal(rows, costs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data's log out of the terminal; its file in the session's directory stays."""
    handlers = logging.getLogger("ray.data").handlers
    levels = {each: each.level for each in handlers if isinstance(each, logging.StreamHandler)}
    try:
        for handler in levels:
            handler.setLevel(logging.CRITICAL)
        yield
    finally:
        for handler, level in levels.items():
            handler.setLevel(level)
