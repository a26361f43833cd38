"""Reads the rows to do of one row group, in small slices.

It runs in Ray's workers but does not import Ray.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.input.plan import RowGroupSplit
from pipeline.input.row_digest import row_digests
from pipeline.input.row_ids import numbered, renamed
from pipeline.input.schema_merge import conform
from pipeline.schema import DIGEST_FIELD, RowSchema

SLICE_BYTES = 8 << 20
# Of each column. Without a buffer, pyarrow reads each column of a row group at once and whole,
# which may be gigabytes of media.
_READ_BUFFER_BYTES = 4 << 20


def read_split(
    filesystem: pafs.FileSystem,
    row_schema: RowSchema,
    split: RowGroupSplit,
    *,
    max_rows: int,
    max_bytes: int = SLICE_BYTES,
) -> Iterator[pa.Table]:
    """Read the rows to do of a row group, at most `max_rows` and about `max_bytes` at a time.

    Yields:
        Tables of `row_id` and the `read` columns of `row_schema`.

    Raises:
        ValueError: the file cannot be read, or not any more; the message names it.
    """
    try:
        with pq.ParquetFile(
            split.path, filesystem=filesystem, buffer_size=_READ_BUFFER_BYTES
        ) as file:
            yield from _slices(file, row_schema, split, max_rows, max_bytes)
    except (OSError, pa.ArrowException) as error:
        where = f"{split.path}, row group {split.row_group}"
        raise ValueError(f"{where} cannot be read: {error}") from error


def _slices(
    file: pq.ParquetFile,
    row_schema: RowSchema,
    split: RowGroupSplit,
    max_rows: int,
    max_bytes: int,
) -> Iterator[pa.Table]:
    if file.metadata.row_group(split.row_group).num_rows != split.num_rows:
        raise OSError("it has changed since the run began")
    todo, is_renamed = _unpack(split, split.todo), _unpack(split, split.renamed)
    own = frozenset(file.schema_arrow.names) - {DIGEST_FIELD.name}
    batches = file.iter_batches(
        batch_size=_slice_rows(file.metadata, split.row_group, row_schema, max_rows, max_bytes),
        row_groups=[split.row_group],
        columns=[name for name in row_schema.read.names if name in own],
        use_threads=False,  # a reader asks Ray for a fraction of one CPU
    )
    first, num_left = 0, split.num_todo
    for batch in batches:
        wanted = todo[first : first + batch.num_rows]
        if wanted.any():
            rows = pa.Table.from_batches([batch])
            rows = rows if wanted.all() else rows.filter(pa.array(wanted))
            numbers = first + np.flatnonzero(wanted)  # in the row group
            yield _with_row_id(
                _complete(rows, split, row_schema),
                split.file,
                _numbers_in_names(split, numbers),
                row_schema.columns.id,
                is_renamed[numbers],
            )
            num_left -= rows.num_rows
        first += batch.num_rows
        if not num_left:
            return  # the rest of the row group is not read


def _numbers_in_names(split: RowGroupSplit, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers by which rows of the row group are named, their places unless it says."""
    if not split.numbers:
        return split.first_row + rows
    return np.frombuffer(split.numbers, np.int64)[rows]


def _complete(rows: pa.Table, split: RowGroupSplit, row_schema: RowSchema) -> pa.Table:
    """Add what the file does not hold: columns of its folders' names, of other files, digests."""
    for name, value in split.partitions:
        if name in row_schema.read.names:
            rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
    rows = conform(rows, row_schema.read)
    if DIGEST_FIELD.name not in rows.column_names:
        return rows
    digests = row_digests(rows.drop_columns(DIGEST_FIELD.name))
    return rows.set_column(rows.column_names.index(DIGEST_FIELD.name), DIGEST_FIELD, digests)


def _with_row_id(
    rows: pa.Table,
    file: str,
    numbers: NDArray[np.int64],
    column: str | None,
    is_renamed: NDArray[np.bool_],
) -> pa.Table:
    """Add the column `row_id`, in place of an id column of that name."""
    if column is None:
        ids = numbered(file, numbers)
    else:
        ids = rows[column].cast(pa.string()).combine_chunks()
        ids = renamed(ids, file, numbers, is_renamed) if is_renamed.any() else ids
    rows = rows.drop_columns("row_id") if column == "row_id" else rows
    return rows.add_column(0, "row_id", ids)


def _unpack(split: RowGroupSplit, packed: bytes) -> NDArray[np.bool_]:
    """Undo `np.packbits` for the rows of the split's row group; no bytes mean no row."""
    num_rows = split.num_rows
    if not packed:
        return np.zeros(num_rows, np.bool_)
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=num_rows).astype(np.bool_)


def _slice_rows(
    footer: pq.FileMetaData,
    row_group: int,
    row_schema: RowSchema,
    max_rows: int,
    max_bytes: int,
) -> int:
    """Choose how many rows to read at a time, so that large media do not make large slices."""
    group = footer.row_group(row_group)
    columns = [group.column(index) for index in range(group.num_columns)]  # leaf columns
    names = frozenset(row_schema.read.names)
    wanted = tuple(f"{name}." for name in names)  # the name of a column may have dots itself
    num_bytes = sum(
        column.total_uncompressed_size
        for column in columns
        if column.path_in_schema.startswith(wanted) or column.path_in_schema in names
    )
    return max(1, min(max_rows, max_bytes * group.num_rows // max(1, num_bytes)))
