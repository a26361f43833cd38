"""Parquet -> the rows still to do.

The driver lists the files and reads their footers and ids (`open_source`, `plan`); a worker reads
one `Piece`, the rows to do of one row group, in small slices (`read_piece`). A row group without
rows to do is not opened again, so done rows cost no media read. No Ray here.

A row's id is the user's id column as a string, else `<file>#<row number>`.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.ids import InputFile, Naming, numbered, renamed
from pipeline.ledger import NO_PART, Held, IdSet, hash_ids
from pipeline.listing import list_files
from pipeline.schema import InputColumns, Layout, check_input
from pipeline.starts import MAX_SHARED_STARTS, MAX_STARTS
from pipeline.unify import conform, unify

_MAX_SLICE_BYTES = 8 << 20
_READ_BUFFER_BYTES = 4 << 20  # of each column, so that a row group never stands in memory whole


@dataclass(frozen=True)
class Source:
    """The files of an input and what to read of them."""

    filesystem: pafs.FileSystem
    folder: str  # to which relative media paths belong; absolute, or a URI
    files: tuple[InputFile, ...]
    layout: Layout
    naming: Naming

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
    renamed: bytes = b""  # one bit a row: its id was null or not unique; empty where all are good


@dataclass(frozen=True)
class Plan:
    """What a run has to do."""

    pieces: tuple[Piece, ...]
    num_rows: int  # of the input, after the limit
    num_done: int  # of these, the rows that the output already holds and that stay
    alone: tuple[Piece, ...] = ()  # of one row each, that were in flight when runs were killed
    hopeless: tuple[Piece, ...] = ()  # of one row each, that were so alone too

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
    make_ids_unique: bool = False,
    output: str | None = None,
) -> Source:
    """Find the files of an input and make one schema of theirs.

    Args:
        uri: as for `list_files`.
        columns: the roles of the columns.
        carry: columns to write beside the results; None means all.
        keep_media: write media bytes too.
        extra: result columns beside the usual ones.
        make_ids_unique: give rows whose id is null or stands there already an id of their own.
        output: as for `list_files`.

    Raises:
        ValueError: there is no such file, a file is not Parquet, there are no rows, a column is
            missing or wrong, or differs too much between files; the message names the file.
    """
    listing = list_files(uri, output=output)
    filesystem, found = listing.filesystem, listing.files
    with ThreadPoolExecutor(16) as pool:  # a footer is a round trip or two on object stores
        footers = list(pool.map(lambda item: _footer(filesystem, item[1]), found))
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    wanted = None if carry is None else {*carry, *columns.names, *columns.fields, *columns.lists}
    named = [(path, schema) for (_, path), schema in zip(found, schemas, strict=True)]
    schema = unify(named, wanted, required=columns.required)
    layout = check_input(schema, columns, carry=carry, keep_media=keep_media, extra=extra)
    files = tuple(
        InputFile(name, path, _row_group_rows(footer))
        for (name, path), footer in zip(found, footers, strict=True)
    )
    naming = Naming(filesystem, files, columns.id, make_ids_unique)
    source = Source(filesystem, listing.folder, files, layout, naming)
    if source.num_rows == 0:
        raise ValueError(f"{uri} has no rows")
    return source


def plan(
    source: Source,
    held: Held,
    *,
    limit: int | None = None,
    only: IdSet | None = None,
    starts: Mapping[int, int] | None = None,
) -> Plan:
    """Decide which rows are still to do. Reads the id column if there is one, nothing else.

    Args:
        source: the input.
        held: what the output already holds.
        limit: only the first `limit` rows of the input count; None means all.
        only: of what is to do, do only these rows; None means all.
        starts: how often killed runs had started a row, by the hash of its id.

    Raises:
        ValueError: an id is null or not unique, or the output has rows that the input has not.
    """
    seen = IdSet()
    pieces: list[Piece] = []
    alone: list[Piece] = []
    hopeless: list[Piece] = []
    num_rows = source.num_rows if limit is None else min(limit, source.num_rows)
    num_matched = num_todo = position = 0
    for file in source.files:
        first_row = 0
        for row_group, raw in enumerate(source.naming.of_file(file)):
            ids, is_renamed = source.naming.good(file, first_row, raw, seen)
            hashes = hash_ids(ids)
            is_done = held.done.contains_hashes(hashes)
            num_matched += int(is_done.sum()) + int((held.part_of(hashes) != NO_PART).sum())
            todo = ~is_done if only is None else ~is_done & only.contains_hashes(hashes)
            todo[max(0, num_rows - position) :] = False
            position += len(todo)
            num_todo += int(todo.sum())
            for row, count in _suspects(hashes, todo, starts or {}):
                todo[row] = False
                single = _piece(file, row_group, first_row, np.arange(len(todo)) == row, is_renamed)
                (hopeless if count >= MAX_STARTS else alone).append(single)
            if todo.any():
                pieces.append(_piece(file, row_group, first_row, todo, is_renamed))
            first_row += len(todo)
    if num_matched < held.num_rows:
        raise ValueError(
            f"the output holds {held.num_rows - num_matched} rows that are not in this input; it "
            "belongs to another input, so use another --output"
        )
    return Plan(tuple(pieces), num_rows, num_rows - num_todo, tuple(alone), tuple(hopeless))


def _suspects(
    hashes: NDArray[np.uint64], todo: NDArray[np.bool_], starts: Mapping[int, int]
) -> list[tuple[int, int]]:
    """The rows to do that killed runs had started too often, with how often."""
    wanted = [key for key, count in starts.items() if count >= MAX_SHARED_STARTS]
    rows = np.flatnonzero(todo & np.isin(hashes, np.array(wanted, np.uint64)))
    return [(int(row), starts[int(hashes[row])]) for row in rows]


def _piece(
    file: InputFile,
    row_group: int,
    first_row: int,
    todo: NDArray[np.bool_],
    is_renamed: NDArray[np.bool_],
) -> Piece:
    return Piece(
        file,
        row_group,
        first_row,
        np.packbits(todo).tobytes(),
        int(todo.sum()),
        np.packbits(is_renamed).tobytes() if is_renamed.any() else b"",
    )


def joined(pieces: Sequence[Piece], num_rows: int) -> list[list[Piece]]:
    """Runs of pieces with at most `num_rows` rows to do; one that has more is a run of its own."""
    runs: list[list[Piece]] = []
    num_left = 0
    for piece in pieces:
        if not runs or piece.num_todo > num_left:
            runs.append([])
            num_left = num_rows
        runs[-1].append(piece)
        num_left -= piece.num_todo
    return runs


def read_piece(
    filesystem: pafs.FileSystem, layout: Layout, piece: Piece, *, max_rows: int
) -> Iterator[pa.Table]:
    """Read the rows to do of a row group, at most `max_rows` and about 8 MiB at a time.

    Yields:
        Tables of `row_id` and the layout's `read` columns.

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
            there = [name for name in layout.read.names if name in file.schema_arrow.names]
            batches = file.iter_batches(
                batch_size=_slice_rows(file.metadata, piece.row_group, layout, max_rows),
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
                        conform(rows, layout.read),
                        piece.file,
                        piece.first_row + numbers,
                        layout.columns.id,
                        is_renamed[numbers],
                    )
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


def _unpack(piece: Piece, packed: bytes) -> NDArray[np.bool_]:
    num_rows = piece.file.row_group_rows[piece.row_group]
    if not packed:
        return np.zeros(num_rows, np.bool_)
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=num_rows).astype(np.bool_)


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
