"""The stages of a run as one stream of Ray Data.

    read --> prepare --> generate --> (the driver commits)
    tasks    actors      clients of
                         the groups

Ray Data sees each batch of rows as one row of bytes (`seal`). It would cut and join blocks by their
size; sealed, a batch stays the unit of work, of retry and of output from its read to its part, a
retried task gives as many blocks as the first one, and no column type of the input has to survive a
conversion. What a stage asks of Ray is fractional, so that a cluster of one CPU can run them all.
"""

import json
import logging
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from pyarrow import fs as pafs
from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata

from model.engine.sequence import SamplingParams
from model.inputs.processor import Processor
from parallel.groups.client import Groups
from pipeline.cluster.nodes import require_checkpoint
from pipeline.cluster.processes import lower_priority
from pipeline.input.plan import RowGroupSplit, batched_splits
from pipeline.input.reader import read_split
from pipeline.input.source import Source
from pipeline.media.limits import MediaError
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.windows import TimeWindows
from pipeline.monitor.stage_costs import Cost, Counted, measured
from pipeline.output.in_flight import MAX_SHARED_STARTS, MAX_STARTS
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.prepare import Prepare
from pipeline.schema import ErrorCode, RowSchema
from pipeline.stages.batching import Batching, Room
from pipeline.stages.generate import Generate
from pipeline.stages.merge import Merger
from pipeline.stages.sizing import Sizing

# Stages that ask for the same are fused: one actor would then read and prepare a whole row group.
_READ_CPUS = 0.2
_PREPARE_CPUS = 0.25
_MAX_READERS = 2
# Of a task. Ray ends workers that wait for the next task, and starting others takes seconds of a
# processor; but more rows would have to be read again when a node is lost.
_ROWS_PER_READ = 256
_DEADLY = MediaError(
    ErrorCode.POISON_ROW,
    f"{MAX_STARTS} processes died while they prepared this row, the last "
    f"{MAX_STARTS - MAX_SHARED_STARTS} of them with no other",
)


@dataclass(frozen=True, kw_only=True)
class Flow:
    """What the stages need to know."""

    source: Source
    checkpoint: Path
    instructions: Instructions
    open_media: Callable[[object], bytes | BinaryIO]
    sampling: SamplingParams
    sizing: Sizing
    keep_order: bool = False

    def results(
        self, pieces: Sequence[RowGroupSplit], groups: Groups, starts: Any
    ) -> Iterator[tuple[pa.Table, list[Cost]]]:
        """Run all stages over `pieces`; yields finished rows, and what they cost.

        Args:
            pieces: what to read.
            groups: who answers.
            starts: handle of a `InFlightJournal` actor, told of rows before a stage works on them.
        """
        sizing = self.sizing
        reads = batched_splits(pieces, _ROWS_PER_READ)
        with self._settings(), _quiet():
            rows = ray.data.read_datasource(
                _Rows(self.source, reads, sizing.read_rows),
                num_cpus=_READ_CPUS,
                concurrency=min(_MAX_READERS, len(reads)),
                override_num_blocks=len(reads),
            )
            rows = rows.map_batches(
                _Preparer,
                fn_constructor_args=(
                    starts,
                    self.checkpoint,
                    self.source.row_schema,
                    self.instructions,
                    self.open_media,
                    self.sampling.seed,
                    sizing.batching,
                ),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=_PREPARE_CPUS,
                compute=ActorPoolStrategy(min_size=1, max_size=sizing.num_preparers),
            )
            rows = rows.map_batches(
                _Generator,
                fn_constructor_args=(
                    starts,
                    groups,
                    self.checkpoint,
                    self.instructions,
                    self.sampling,
                    sizing.rows_per_client,
                ),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=0,
                compute=ActorPoolStrategy(
                    size=sizing.num_clients,
                    max_concurrent_calls_per_actor=sizing.batches_per_client,
                    max_tasks_in_flight_per_actor=sizing.batches_per_client,
                ),
            )
            blocks: Iterator[Any] = iter(
                rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            )
            for block in blocks:
                yield _copied(block), costs_of(block)

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Settings of Ray Data for what is made in the `with`; the process keeps its own."""
        with warnings.catch_warnings():
            # Copying a context sets its deprecated attributes too.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.data")
            context = DataContext.get_current().copy()
            context.target_max_block_size = 1  # of bytes: each sealed batch is a block of its own
            # Ray Data looks at its workers ten times a second; with the two blocks that it lets
            # them be ahead, each would give twenty batches a second at most.
            context._max_num_blocks_in_streaming_gen_buffer = self.sizing.batches_ahead
            context.memory_usage_poll_interval_s = None  # a thread for each task; nobody asks
            context.enable_progress_bars = False
            context.print_on_execution_start = False
            context.execution_no_progress_timeout_s = (
                -1
            )  # captions may be long, engines slow to load
            context.raise_original_map_exception = True  # else its message would be lost
            context.issue_detectors_config.detectors = []
            # A preparer that waits for the engines is kept: to start another later takes seconds of
            # a processor, and would happen over and over.
            context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
            context.execution_options.preserve_order = self.keep_order
            context.execution_options.resource_limits = ExecutionResources.for_limits(
                object_store_memory=self.sizing.max_queued_bytes
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
    def __init__(
        self, source: Source, reads: Sequence[Sequence[RowGroupSplit]], max_rows: int
    ) -> None:
        self._source = source
        self._reads = reads
        self._max_rows = max_rows

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
        source = self._source
        return [
            _read_task(source.filesystem, source.row_schema, pieces, self._max_rows)
            for pieces in self._reads
        ]


def _read_task(
    filesystem: pafs.FileSystem,
    row_schema: RowSchema,
    pieces: Sequence[RowGroupSplit],
    max_rows: int,
) -> ReadTask:
    def read() -> Iterator[pa.Table]:
        slices = chain.from_iterable(
            read_split(filesystem, row_schema, piece, max_rows=max_rows) for piece in pieces
        )
        while True:
            with measured("read") as cost:
                rows = next(slices, None)
                if rows is None:
                    return
                cost.num_bytes = rows.nbytes
            yield seal(rows, [cost])

    metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
    return ReadTask(read, metadata)


class _Preparer:
    def __init__(
        self,
        starts: Any,
        checkpoint: Path,
        row_schema: RowSchema,
        instructions: Instructions,
        open_media: Callable[[object], bytes | BinaryIO],
        seed: int,
        batching: Batching,
    ) -> None:
        require_checkpoint(checkpoint)
        lower_priority()
        self._batching = batching
        self._media_column = row_schema.columns.video
        self._starts = starts
        processor = Processor.from_checkpoint(checkpoint)
        self._open = Counted(open_media)
        self._decoder = SandboxedDecoder(instructions.limits)
        self._prepare = Prepare(
            processor, row_schema, instructions, self._open, seed, self._decoder
        )

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Give batches as they are ready, so that the first need not wait for the last."""
        rows, costs = unseal(block), costs_of(block)
        ids = rows["row_id"].combine_chunks()
        prepare = self._prepare
        if self._start(ids) >= MAX_SHARED_STARTS:
            self._starts.end.remote(ids, "prepare")
            prepare = self._one_by_one
        num_left = rows.num_rows
        # Batches are the same whenever a task is tried again: Ray may have taken the first ones.
        for batch in self._batching.cut(rows, self._media_column):
            with measured("prepare") as cost:
                before = self._open.num_bytes
                prepared = prepare(batch)
                cost.num_bytes = self._open.num_bytes - before
                cost.decoder_peak_bytes = self._decoder.peak_bytes
            num_left -= batch.num_rows
            if not num_left:
                self._starts.end.remote(ids, "prepare")
            yield seal(prepared, [*costs, cost])
            costs = []

    def _one_by_one(self, batch: pa.Table) -> pa.Table:
        """As `Prepare`, with one row being worked on at a time, to find the one that is deadly."""
        prepared = []
        for index in range(batch.num_rows):
            row = batch.slice(index, 1)
            ids = row["row_id"].combine_chunks()
            is_deadly = self._start(ids) >= MAX_STARTS
            prepared.append(self._prepare(row, _DEADLY if is_deadly else None))
            self._starts.end.remote(ids, "prepare")
        return pa.concat_tables(prepared)

    def _start(self, ids: pa.Array) -> int:
        """How many processes have died in this run that prepared one of the rows, at most."""
        return cast(int, ray.get(self._starts.start.remote(ids, "prepare")))


class _Generator:
    def __init__(
        self,
        starts: Any,
        groups: Groups,
        checkpoint: Path,
        instructions: Instructions,
        sampling: SamplingParams,
        rows_in_flight: int,
    ) -> None:
        self._starts = starts
        self._room = Room(rows_in_flight)
        windows, merger = instructions.windows, None
        if isinstance(windows, TimeWindows) and windows.merge is not None:
            require_checkpoint(checkpoint)
            merger = Merger(Processor.from_checkpoint(checkpoint), windows.merge, sampling)
        self._generate = Generate(groups, sampling, instructions.questions, windows, merger)

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        rows = unseal(block)
        ids = rows["row_id"].combine_chunks()
        async with self._room.hold(rows.num_rows):
            with measured("generate") as cost:
                await self._starts.start.remote(ids, "generate")
                (rows,) = [rows async for rows in self._generate(rows)]
                self._starts.end.remote(ids, "generate")
                cost.num_rows = rows.num_rows
        yield seal(rows, [*costs_of(block), cost])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data's log out of the terminal; its file in the session's directory stays."""
    consoles = [
        handler
        for handler in logging.getLogger("ray.data").handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    levels = [handler.level for handler in consoles]
    try:
        for handler in consoles:
            handler.setLevel(logging.CRITICAL)
        yield
    finally:
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)
