"""Parquet -> the rows still to do.

The driver lists the files and reads their footers and ids (`open_source`, `plan`); a worker reads
one `Piece`, the rows to do of one row group, in small slices (`read_piece`). A row group without
rows to do is not opened again, so done rows cost no media read. No Ray here.

A row's id is the user's id column as a string, else `<file>#<row number>`.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.ledger import IdSet, hash_ids
from pipeline.listing import list_files
from pipeline.schema import InputColumns, Layout, check_input, plain_type

_MAX_SLICE_BYTES = 32 << 20
_READ_BUFFER_BYTES = 4 << 20  # of each column, so that a row group never stands in memory whole
_IDS_PER_BATCH = 1 << 16


@dataclass(frozen=True)
class InputFile:
    """One Parquet file of the input."""

    name: str  # relative to the input; the row ids begin with it
    path: str  # on the source's filesystem
    row_group_rows: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """The files of an input and what to read of them."""

    filesystem: pafs.FileSystem
    folder: str  # to which relative media paths belong; absolute, or a URI
    files: tuple[InputFile, ...]
    layout: Layout

    @property
    def num_rows(self) -> int:
        """Rows of the whole input, done or not."""
        return sum(sum(file.row_group_rows) for file in self.files)


@dataclass(frozen=True)
class Piece:
    """The rows to do of one row group: the unit of reading."""

    file: InputFile
    row_group: int
    first_row: int  # of the row group in its file
    todo: bytes  # one bit a row, as np.packbits gives
    num_todo: int


@dataclass(frozen=True)
class Plan:
    """What a run has to do."""

    pieces: tuple[Piece, ...]
    num_rows: int  # of the input, after the limit
    num_done: int  # of these, the rows that the output already holds

    @property
    def num_todo(self) -> int:
        """Rows that this run shall answer."""
        return self.num_rows - self.num_done


def open_source(
    uri: str,
    columns: InputColumns,
    *,
    carry: Sequence[str] | None = None,
    keep_media: bool = False,
    extra: Sequence[pa.Field] = (),
) -> Source:
    """Find the files of an input and check their schemas.

    Args:
        uri: as for `list_files`.
        columns: the roles of the columns.
        carry: columns to write beside the results; None means all.
        keep_media: write media bytes too.
        extra: result columns beside the usual ones.

    Raises:
        ValueError: there is no such file, a file is not Parquet, there are no rows, or a column is
            missing or wrong; the message names the file.
    """
    listing = list_files(uri)
    filesystem, found = listing.filesystem, listing.files
    with ThreadPoolExecutor(16) as pool:  # a footer is a round trip or two on object stores
        footers = list(pool.map(lambda item: _footer(filesystem, item[1]), found))
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    layout = check_input(schemas[0], columns, carry=carry, keep_media=keep_media, extra=extra)
    for (_, path), schema in zip(found[1:], schemas[1:], strict=True):
        _check_same(schemas[0], found[0][1], schema, path, layout, carries_all=carry is None)
    source = Source(
        filesystem,
        listing.folder,
        tuple(
            InputFile(name, path, _row_group_rows(footer))
            for (name, path), footer in zip(found, footers, strict=True)
        ),
        layout,
    )
    if source.num_rows == 0:
        raise ValueError(f"{uri} has no rows")
    return source


def plan(
    source: Source, done: IdSet, *, limit: int | None = None, only: IdSet | None = None
) -> Plan:
    """Decide which rows are still to do. Reads the id column if there is one, nothing else.

    Args:
        source: the input.
        done: the ids of the rows that the output already holds.
        limit: only the first `limit` rows of the input count; None means all.
        only: of what is to do, do only these rows; None means all.

    Raises:
        ValueError: an id is null or not unique, or the output has rows that the input has not.
    """
    seen = IdSet()
    pieces = []
    num_rows = source.num_rows if limit is None else min(limit, source.num_rows)
    num_matched = num_todo = position = 0
    for file in source.files:
        first_row = 0
        for row_group, ids in enumerate(_row_group_ids(source, file)):
            if source.layout.columns.id is not None:
                _refuse_bad_ids(source, file, first_row, ids, seen.add(ids))
            is_done = done.contains(ids)
            num_matched += int(is_done.sum())
            todo = ~is_done if only is None else ~is_done & only.contains(ids)
            todo[max(0, num_rows - position) :] = False
            position += len(todo)
            if todo.any():
                num = int(todo.sum())
                bits = np.packbits(todo).tobytes()
                pieces.append(Piece(file, row_group, first_row, bits, num))
                num_todo += num
            first_row += len(todo)
    if num_matched < len(done):
        raise ValueError(
            f"the output holds {len(done) - num_matched} rows that are not in this input; it "
            "belongs to another input, so use another --output"
        )
    return Plan(tuple(pieces), num_rows, num_rows - num_todo)


def read_piece(
    filesystem: pafs.FileSystem, layout: Layout, piece: Piece, *, max_rows: int
) -> Iterator[pa.Table]:
    """Read the rows to do of a row group, at most `max_rows` and about 32 MiB at a time.

    Yields:
        Tables of `row_id` and the layout's `read` columns.

    Raises:
        ValueError: the file cannot be read (any more); the message names it.
    """
    todo = _unpack(piece)
    end = int(np.flatnonzero(todo)[-1]) + 1
    row = 0
    try:
        with pq.ParquetFile(
            piece.file.path, filesystem=filesystem, buffer_size=_READ_BUFFER_BYTES
        ) as file:
            batches = file.iter_batches(
                batch_size=_slice_rows(file.metadata, piece.row_group, layout, max_rows),
                row_groups=[piece.row_group],
                columns=layout.read.names,
                use_threads=False,
            )
            for batch in batches:
                wanted = todo[row : row + batch.num_rows]
                if wanted.any():
                    rows = pa.Table.from_batches([batch]).select(layout.read.names)
                    rows = rows if wanted.all() else rows.filter(pa.array(wanted))
                    numbers = piece.first_row + row + np.flatnonzero(wanted)
                    yield _with_row_id(rows.cast(layout.read), piece.file, numbers, layout)
                row += batch.num_rows
                if row >= end:
                    return
    except (OSError, pa.ArrowException) as error:
        where = f"{piece.file.path}, row group {piece.row_group}"
        raise ValueError(f"{where} cannot be read: {error}") from error


def _footer(filesystem: pafs.FileSystem, path: str) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path, filesystem=filesystem)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is not a Parquet file that can be read: {error}") from error


def _row_group_rows(footer: pq.FileMetaData) -> tuple[int, ...]:
    return tuple(footer.row_group(index).num_rows for index in range(footer.num_row_groups))


def _check_same(
    first: pa.Schema,
    first_path: str,
    schema: pa.Schema,
    path: str,
    layout: Layout,
    *,
    carries_all: bool,
) -> None:
    """Refuse a file whose used columns differ from those of the first file."""
    for field in layout.read:
        if field.name not in schema.names:
            raise ValueError(f"{path} has no column {field.name!r}, which {first_path} has")
        kind = plain_type(schema.field(field.name))
        if kind != field.type:
            raise ValueError(
                f"column {field.name!r} is {kind} in {path} and {field.type} in {first_path}"
            )
    extra = [name for name in schema.names if name not in first.names]
    if carries_all and extra:
        raise ValueError(
            f"{path} has columns that {first_path} has not: {', '.join(extra)}; choose the "
            "columns to carry with --columns"
        )


def _row_group_ids(source: Source, file: InputFile) -> Iterator[pa.Array]:
    """The ids of each row group, in order."""
    column = source.layout.columns.id
    if column is None:
        first = 0
        for num_rows in file.row_group_rows:
            yield _numbered(file, np.arange(first, first + num_rows))
            first += num_rows
        return
    try:
        with pq.ParquetFile(file.path, filesystem=source.filesystem) as parquet:
            for row_group in range(len(file.row_group_rows)):
                batches = parquet.iter_batches(
                    batch_size=_IDS_PER_BATCH, row_groups=[row_group], columns=[column]
                )
                chunks = [batch.column(0).cast(pa.string()) for batch in batches]
                yield pa.chunked_array(chunks, type=pa.string()).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"the ids of {file.path} cannot be read: {error}") from error


def _refuse_bad_ids(
    source: Source, file: InputFile, first_row: int, ids: pa.Array, is_new: NDArray[np.bool_]
) -> None:
    column = source.layout.columns.id
    if ids.null_count:
        row = first_row + pc.index(ids.is_null(), True).as_py()
        raise ValueError(f"the id column {column!r} is null in {file.path}, row {row}")
    if is_new.all():
        return
    index = int(np.flatnonzero(~is_new)[0])
    value, row = ids[index].as_py(), first_row + index
    for other, other_row, other_value in _with_hash(source, hash_ids(ids.slice(index, 1))[0]):
        if (other, other_row) == (file, row):
            break
        if other_value == value:
            raise ValueError(
                f"the id {value!r} stands twice in column {column!r}: in {other.path}, row "
                f"{other_row}, and in {file.path}, row {row}; ids must be unique, or leave out "
                "--id-column to number the rows"
            )
    raise ValueError(
        f"the id {value!r} in {file.path}, row {row} cannot be told from another id by its 64-bit "
        "hash; change it, or leave out --id-column to number the rows"
    )


def _with_hash(source: Source, wanted: np.uint64) -> Iterator[tuple[InputFile, int, str]]:
    """All rows whose id has a given hash: a second pass over the ids, for an error message."""
    for file in source.files:
        first_row = 0
        for ids in _row_group_ids(source, file):
            for index in np.flatnonzero(hash_ids(ids) == wanted):
                yield file, first_row + int(index), ids[int(index)].as_py()
            first_row += len(ids)


def _numbered(file: InputFile, numbers: NDArray[np.int64]) -> pa.Array:
    text = pa.array(numbers).cast(pa.string())
    return pc.call_function("binary_join_element_wise", [pa.scalar(file.name), text, "#"])


def _with_row_id(
    rows: pa.Table, file: InputFile, numbers: NDArray[np.int64], layout: Layout
) -> pa.Table:
    column = layout.columns.id
    ids = _numbered(file, numbers) if column is None else rows[column].cast(pa.string())
    rows = rows.drop_columns("row_id") if column == "row_id" else rows
    return rows.add_column(0, "row_id", ids)


def _unpack(piece: Piece) -> NDArray[np.bool_]:
    num_rows = piece.file.row_group_rows[piece.row_group]
    packed = np.frombuffer(piece.todo, dtype=np.uint8)
    return np.unpackbits(packed, count=num_rows).astype(np.bool_)


def _slice_rows(footer: pq.FileMetaData, row_group: int, layout: Layout, max_rows: int) -> int:
    """How many rows to read at a time, so that big media do not make big slices."""
    group = footer.row_group(row_group)
    columns = [group.column(index) for index in range(group.num_columns)]
    num_bytes = sum(
        column.total_uncompressed_size
        for column in columns
        if column.path_in_schema.split(".")[0] in layout.read.names
    )
    return max(1, min(max_rows, _MAX_SLICE_BYTES * group.num_rows // max(1, num_bytes)))
