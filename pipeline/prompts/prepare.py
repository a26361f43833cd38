"""`Prepare`, the stage that turns rows into prompts. Nothing here uses Ray.

    fetch --> decode --> resize once --> cut into patches --> render the chat template

A row that cannot become a prompt becomes a row with a status, an error code and a message. This
stage is the one place where that happens, so that no bad row stops a job.
"""

from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from model.inputs.processor import Processor
from pipeline.media.limits import MediaError
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.prompts.frame_loader import FrameLoader, LoadsFrames
from pipeline.prompts.input_row import read_row
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.prompt_builder import PromptBuilder
from pipeline.prompts.row_prompts import row_prompts
from pipeline.schema import (
    NAMED_PROMPT_FIELD,
    PREPARED_FIELDS,
    PROMPT_NUMBER_FIELD,
    WINDOW_FIELD,
    RowSchema,
)


class Prepare:
    """Makes prompts of the rows of one table after the other; a process needs one instance.

    `fetch` opens one media value or raises a `MediaError`. Each prompt gets a seed of its own from
    that of the run. Without a decoder, a decoding process with the limits of `instructions` starts.
    A `loader` gives the frames in place of both.
    """

    def __init__(
        self,
        processor: Processor,
        row_schema: RowSchema,
        instructions: Instructions,
        fetch: Callable[[object], bytes | BinaryIO],
        seed: int = 0,
        decoder: SandboxedDecoder | None = None,
        loader: LoadsFrames | None = None,
    ) -> None:
        self._row_schema = row_schema
        self._decoder = decoder or SandboxedDecoder(instructions.limits)
        if loader is None:
            loader = FrameLoader(
                processor, fetch, self._decoder, instructions.limits, instructions.background_color
            )
        builder = PromptBuilder(processor, instructions.system, seed)
        self._row_prompts = row_prompts(instructions, loader, builder)
        self._row_fields: tuple[pa.Field, ...] = ()  # they tell the prompts of one row apart
        if instructions.named_prompts:
            self._row_fields = (PROMPT_NUMBER_FIELD, NAMED_PROMPT_FIELD)
        elif instructions.windows is not None:
            self._row_fields = (PROMPT_NUMBER_FIELD, WINDOW_FIELD)

    def __call__(self, rows: pa.Table, error: MediaError | None = None) -> pa.Table:
        """Prepare a table of `row_id` and the row schema's `read` columns.

        If there is an `error`, every row gets it and no media are opened.

        Returns:
            `row_id`, the carried columns and `PREPARED_FIELDS`, one row for each row of the input.
            With named prompts or windows there is one row for each prompt instead, which also has
            `PROMPT_NUMBER_FIELD` and `NAMED_PROMPT_FIELD` or `WINDOW_FIELD`; carried columns are
            then null except in the first row of each input row.
        """
        columns = self._row_schema.columns
        prepared = [
            self._row_prompts(read_row(rows, index, columns, error))
            for index in range(rows.num_rows)
        ]
        ids, carried = rows["row_id"], self._row_schema.carry(rows)
        if self._row_fields:
            row_of = np.arange(rows.num_rows).repeat([len(prompts) for prompts in prepared])
            is_first = np.diff(row_of, prepend=-1) > 0
            ids = ids.take(pa.array(row_of))
            # The carried columns may hold the media's bytes, so only one prompt of a row has them.
            carried = carried.take(pa.array(row_of, mask=~is_first))
        fields = (*PREPARED_FIELDS, *self._row_fields)
        prompts = [prompt for prompts in prepared for prompt in prompts]
        schema = pa.schema([rows.schema.field("row_id"), *carried.schema, *fields])
        made = [pa.array([prompt.get(f.name) for prompt in prompts], f.type) for f in fields]
        return pa.Table.from_arrays([ids, *carried.columns, *made], schema=schema)

    def close(self) -> None:
        """End the decoding process; preparing another table would start a new one."""
        self._decoder.close()
