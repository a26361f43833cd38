"""The stages before the writer, as plain objects of one worker each. No Ray here.

`read_splits` reads rows, `PrepareWorker` turns rows into batches of prompts, `GenerateWorker` turns
a batch into results. Each measures what it took.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs as pafs

from model.inputs.processor import Processor
from pipeline.cluster.nodes import require_checkpoint
from pipeline.config import PipelineConfig
from pipeline.input.plan import RowGroupSplit
from pipeline.input.reader import read_split
from pipeline.media.limits import MediaError
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.windows import TimeWindows
from pipeline.monitor.stage_costs import Cost, Counted, measured
from pipeline.output.poison import KILLED_PREPARERS, PREPARERS
from pipeline.prompts.prepare import Prepare
from pipeline.run_plan import RunPlan
from pipeline.schema import RowSchema
from pipeline.stages.generate import Generate, SharedGroups
from pipeline.stages.journal import Journal
from pipeline.stages.merge import Merger
from pipeline.stages.sizing import Sizing
from pipeline.status import ErrorCode

CostedRows = tuple[pa.Table, list[Cost]]  # rows, and what the stages so far took for them

_POISON = MediaError(ErrorCode.POISON_ROW, KILLED_PREPARERS)


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """What the stages of a run need, wherever they run; it travels to their workers."""

    config: PipelineConfig
    filesystem: pafs.FileSystem  # of the input
    row_schema: RowSchema
    open_media: Callable[[object], bytes | BinaryIO]
    sizing: Sizing

    @classmethod
    def of(cls, plan: RunPlan, sizing: Sizing, *, one_by_one: bool) -> "StageSpec":
        """Take what the stages need from the plan of a run."""
        return cls(
            config=plan.config,
            filesystem=plan.source.filesystem,
            row_schema=plan.source.row_schema,
            open_media=plan.media.open,
            sizing=replace(sizing, read_rows=1) if one_by_one else sizing,
        )


def read_splits(spec: StageSpec, splits: Iterable[RowGroupSplit]) -> Iterator[CostedRows]:
    """Read rows, at most `read_rows` and about `read_bytes` at a time."""
    for split in splits:
        tables = read_split(
            spec.filesystem,
            spec.row_schema,
            split,
            max_rows=spec.sizing.read_rows,
            max_bytes=spec.sizing.read_bytes,
        )
        while True:
            with measured("read") as cost:
                rows = next(tables, None)
            if rows is None:
                break
            cost.num_bytes = rows.nbytes
            yield rows, [cost]


class PrepareWorker:
    """Prepares rows, batch after batch, and tells the journal of them before."""

    def __init__(self, spec: StageSpec, journal: Journal) -> None:
        config = spec.config
        require_checkpoint(config.checkpoint)
        self._journal = journal
        self._batching = spec.sizing.batching
        self._media_column = spec.row_schema.columns.video
        self._open = Counted(spec.open_media)
        self._decoder = SandboxedDecoder(config.instructions.limits)
        self._prepare = Prepare(
            Processor.from_checkpoint(config.checkpoint),
            spec.row_schema,
            config.instructions,
            self._open,
            config.sampling.seed,
            self._decoder,
        )

    def __call__(self, rows: pa.Table, costs: list[Cost]) -> Iterator[CostedRows]:
        """Yield each batch as soon as it is ready, so that the first need not wait for the last.

        The batches of a table are always the same: Ray may try a task again of which it has taken
        the first ones. What reading took is told once, with the first batch.
        """
        ids = rows["row_id"].combine_chunks()
        prepare = self._prepare
        if PREPARERS.is_quarantined(self._journal.start_preparing(ids)):
            self._journal.end_preparing(ids)
            prepare = self._one_by_one
        num_left = rows.num_rows
        for batch in self._batching.cut(rows, self._media_column):
            with measured("prepare") as cost:
                before = self._open.num_bytes
                prepared = prepare(batch)
                cost.num_bytes = self._open.num_bytes - before
                cost.decoder_peak_bytes = self._decoder.peak_bytes
            num_left -= batch.num_rows
            if not num_left:
                self._journal.end_preparing(ids)
            yield prepared, [*costs, cost]
            costs = []

    def close(self) -> None:
        """End the decoding process."""
        self._prepare.close()

    def _one_by_one(self, batch: pa.Table) -> pa.Table:
        """Prepare one row at a time, which shows the row that kills its process."""
        prepared = []
        for index in range(batch.num_rows):
            row = batch.slice(index, 1)
            ids = row["row_id"].combine_chunks()
            is_poison = PREPARERS.is_poison(self._journal.start_preparing(ids))
            prepared.append(self._prepare(row, _POISON if is_poison else None))
            self._journal.end_preparing(ids)
        return pa.concat_tables(prepared)


class GenerateWorker:
    """Answers batches of prompts, several at a time, and tells the journal of them before."""

    def __init__(self, spec: StageSpec, groups: SharedGroups, journal: Journal) -> None:
        self._journal = journal
        config, merger = spec.config, None
        windows, prompts = config.instructions.windows, config.instructions.named_prompts
        if isinstance(windows, TimeWindows) and windows.merge is not None:
            require_checkpoint(config.checkpoint)
            processor = Processor.from_checkpoint(config.checkpoint)
            merger = Merger(processor, windows.merge, config.sampling)
        self._groups = groups
        self._generate = Generate(groups, config.sampling, prompts, windows, merger)

    async def __call__(self, rows: pa.Table, costs: list[Cost]) -> CostedRows:
        """Answer a batch, once there is room for its rows."""
        ids = rows["row_id"].combine_chunks()
        async with self._groups.turn(rows.num_rows) as groups:
            generate = replace(self._generate, groups=groups)
            with measured("generate") as cost:
                async with self._journal.generating(ids):
                    (rows,) = [rows async for rows in generate(rows)]
                cost.num_rows = rows.num_rows
                # By all batches that are here meanwhile; each byte is counted once.
                cost.crossed_bytes = self._groups.take_crossed_bytes()
        return rows, [*costs, cost]
