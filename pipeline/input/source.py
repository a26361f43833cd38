"""Opens an input: finds its files and merges their schemas. Only footers are read, no rows.

The id of a row is the value of the user's id column as a string, or else `<file>#<row number>`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.input.listing import list_files
from pipeline.input.row_ids import InputFile, RowNaming
from pipeline.input.schema_merge import unify
from pipeline.schema import InputColumns, RowSchema, check_input

_FOOTER_THREADS = 16  # a footer takes a round trip or two on object stores, and no CPU time


@dataclass(frozen=True)
class Source:
    """The files of an input, and which columns to read of them."""

    filesystem: pafs.FileSystem
    folder: str  # base of relative media paths; absolute, or a URI
    files: tuple[InputFile, ...]
    row_schema: RowSchema
    naming: RowNaming

    @property
    def num_rows(self) -> int:
        """The number of rows of the whole input, done or not."""
        return sum(sum(file.row_group_rows) for file in self.files)


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
    """Find the files of an input and merge their schemas.

    `uri` and `output` are as for `list_files`, `carry`, `keep_media` and `extra` as for
    `check_input`. `make_ids_unique` renames null and repeated ids instead of refusing them.

    Raises:
        ValueError: there is no such file, a file is not Parquet, there are no rows, or a column is
            missing, has a wrong type or differs too much between files; the message names the
            file or column.
    """
    listing = list_files(uri, output=output)
    filesystem, found = listing.filesystem, listing.files
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda item: _footer(filesystem, item[1]), found))
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    wanted = None if carry is None else {*carry, *columns.names, *columns.fields, *columns.lists}
    named = [(path, schema) for (_, path), schema in zip(found, schemas, strict=True)]
    schema = unify(named, wanted, required=columns.required)
    row_schema = check_input(schema, columns, carry=carry, keep_media=keep_media, extra=extra)
    files = tuple(
        InputFile(name, path, _row_group_rows(footer))
        for (name, path), footer in zip(found, footers, strict=True)
    )
    kind = pa.string() if columns.id is None else row_schema.read.field(columns.id).type
    naming = RowNaming(filesystem, files, columns.id, make_ids_unique, kind)
    source = Source(filesystem, listing.folder, files, row_schema, naming)
    if source.num_rows == 0:
        raise ValueError(f"{uri} has no rows")
    return source


def _footer(filesystem: pafs.FileSystem, path: str) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path, filesystem=filesystem)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is not a Parquet file that can be read: {error}") from error


def _row_group_rows(footer: pq.FileMetaData) -> tuple[int, ...]:
    return tuple(footer.row_group(index).num_rows for index in range(footer.num_row_groups))
