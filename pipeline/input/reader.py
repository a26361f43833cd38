"""Reads the rows to do of one row group, in small slices. Runs in workers; no Ray here."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.input.plan import RowGroupSplit
from pipeline.input.row_ids import InputFile, numbered, renamed
from pipeline.input.schema_merge import conform
from pipeline.schema import RowSchema

_MAX_SLICE_BYTES = 8 << 20


_READ_BUFFER_BYTES = 4 << 20  # of each column, so that a row group never stands in memory whole


def read_split(
    filesystem: pafs.FileSystem, row_schema: RowSchema, piece: RowGroupSplit, *, max_rows: int
) -> Iterator[pa.Table]:
    """Read the rows to do of a row group, at most `max_rows` and about 8 MiB at a time.

    Yields:
        Tables of `row_id` and the row_schema's `read` columns.

    Raises:
        ValueError: the file cannot be read (any more); the message names it.
    """
    todo = _unpack(piece, piece.todo)
    is_renamed = _unpack(piece, piece.renamed)
    end = int(np.flatnonzero(todo)[-1]) + 1
    row = 0
    try:
        with pq.ParquetFile(
            piece.file.path, filesystem=filesystem, buffer_size=_READ_BUFFER_BYTES
        ) as file:
            there = [name for name in row_schema.read.names if name in file.schema_arrow.names]
            batches = file.iter_batches(
                batch_size=_slice_rows(file.metadata, piece.row_group, row_schema, max_rows),
                row_groups=[piece.row_group],
                columns=there,
                use_threads=False,
            )
            for batch in batches:
                wanted = todo[row : row + batch.num_rows]
                if wanted.any():
                    rows = pa.Table.from_batches([batch])
                    rows = rows if wanted.all() else rows.filter(pa.array(wanted))
                    numbers = row + np.flatnonzero(wanted)
                    yield _with_row_id(
                        conform(rows, row_schema.read),
                        piece.file,
                        piece.first_row + numbers,
                        row_schema.columns.id,
                        is_renamed[numbers],
                    )
                row += batch.num_rows
                if row >= end:
                    return
    except (OSError, pa.ArrowException) as error:
        where = f"{piece.file.path}, row group {piece.row_group}"
        raise ValueError(f"{where} cannot be read: {error}") from error


def _with_row_id(
    rows: pa.Table,
    file: InputFile,
    numbers: NDArray[np.int64],
    column: str | None,
    is_renamed: NDArray[np.bool_],
) -> pa.Table:
    if column is None:
        ids = numbered(file, numbers)
    else:
        ids = rows[column].cast(pa.string()).combine_chunks()
        ids = renamed(ids, file, numbers, is_renamed) if is_renamed.any() else ids
    rows = rows.drop_columns("row_id") if column == "row_id" else rows
    return rows.add_column(0, "row_id", ids)


def _unpack(piece: RowGroupSplit, packed: bytes) -> NDArray[np.bool_]:
    num_rows = piece.file.row_group_rows[piece.row_group]
    if not packed:
        return np.zeros(num_rows, np.bool_)
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=num_rows).astype(np.bool_)


def _slice_rows(
    footer: pq.FileMetaData, row_group: int, row_schema: RowSchema, max_rows: int
) -> int:
    """How many rows to read at a time, so that big media do not make big slices."""
    group = footer.row_group(row_group)
    columns = [group.column(index) for index in range(group.num_columns)]
    num_bytes = sum(
        column.total_uncompressed_size
        for column in columns
        if column.path_in_schema.split(".")[0] in row_schema.read.names
    )
    return max(1, min(max_rows, _MAX_SLICE_BYTES * group.num_rows // max(1, num_bytes)))
