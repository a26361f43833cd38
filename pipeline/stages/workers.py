"""The two stages between reading and writing, as plain objects of one worker each. No Ray here.

`PrepareWorker` turns rows into batches of prompts, `GenerateWorker` turns a batch into results.
Each tells the journal of its rows before it works on them, and measures what it took.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from model.engine.sequence import SamplingParams
from model.inputs.processor import Processor
from pipeline.cluster.nodes import require_checkpoint
from pipeline.media.limits import MediaError
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.windows import TimeWindows
from pipeline.monitor.stage_costs import Cost, Counted, measured
from pipeline.output.poison import KILLED_PREPARERS, PREPARERS
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.prepare import Prepare
from pipeline.schema import ErrorCode, RowSchema
from pipeline.stages.batching import Batching, Room
from pipeline.stages.generate import EngineGroups, Generate
from pipeline.stages.journal import Journal
from pipeline.stages.merge import Merger

CostedRows = tuple[pa.Table, list[Cost]]  # rows, and what the stages so far took for them

_POISON = MediaError(ErrorCode.POISON_ROW, KILLED_PREPARERS)


class PrepareWorker:
    """Prepares rows, batch after batch.

    Args:
        journal: is told of rows before they are prepared.
        checkpoint: whose processor makes the prompts.
        row_schema: of the tables that come.
        instructions: what to make of them.
        open_media: opens what a row holds.
        seed: of the run.
        batching: which rows make a batch.
    """

    def __init__(
        self,
        journal: Journal,
        checkpoint: Path,
        row_schema: RowSchema,
        instructions: Instructions,
        open_media: Callable[[object], bytes | BinaryIO],
        seed: int,
        batching: Batching,
    ) -> None:
        require_checkpoint(checkpoint)
        self._journal = journal
        self._batching = batching
        self._media_column = row_schema.columns.video
        self._open = Counted(open_media)
        self._decoder = SandboxedDecoder(instructions.limits)
        processor = Processor.from_checkpoint(checkpoint)
        self._prepare = Prepare(
            processor, row_schema, instructions, self._open, seed, self._decoder
        )

    def __call__(self, rows: pa.Table) -> Iterator[tuple[pa.Table, Cost]]:
        """Yield each batch as soon as it is ready, so that the first need not wait for the last.

        The batches of a table are always the same: Ray may try a task again of which it has taken
        the first ones.
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
            yield prepared, cost

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
    """Answers batches of prompts, several at a time.

    Args:
        journal: is told of rows before they are answered.
        groups: who answers.
        checkpoint: whose processor makes the prompts that merge the captions of windows.
        instructions: what was asked.
        sampling: of every row.
        max_rows: that are at the engines at a time.
    """

    def __init__(
        self,
        journal: Journal,
        groups: EngineGroups,
        checkpoint: Path,
        instructions: Instructions,
        sampling: SamplingParams,
        max_rows: int,
    ) -> None:
        self._journal = journal
        self._room = Room(max_rows)
        windows, merger = instructions.windows, None
        if isinstance(windows, TimeWindows) and windows.merge is not None:
            require_checkpoint(checkpoint)
            merger = Merger(Processor.from_checkpoint(checkpoint), windows.merge, sampling)
        self._generate = Generate(groups, sampling, instructions.named_prompts, windows, merger)

    async def __call__(self, rows: pa.Table) -> tuple[pa.Table, Cost]:
        """Answer a batch, once there is room for its rows."""
        ids = rows["row_id"].combine_chunks()
        async with self._room.hold(rows.num_rows):
            with measured("generate") as cost:
                async with self._journal.generating(ids):
                    (rows,) = [rows async for rows in self._generate(rows)]
                cost.num_rows = rows.num_rows
        return rows, cost
