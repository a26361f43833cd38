"""Opens an input: finds its files and merges their schemas. Only footers are read, no rows.

The id of a row is the value of the user's id column as a string, or else `<file>#<row number>`.
"""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.input.files_below import LeftOut
from pipeline.input.listing import list_files
from pipeline.input.row_ids import InputFile, RowNaming
from pipeline.input.schema_merge import unify
from pipeline.schema import InputColumns, RowSchema, check_input

_FOOTER_THREADS = 16  # a footer takes a round trip or two on object stores, and no CPU time
_TAIL_BYTES = 64 << 10  # of a file, that are read at once: the footer and what lies before it
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # how Hive and Spark write a null into a name


@dataclass(frozen=True)
class Source:
    """The files of an input, and which columns to read of them."""

    filesystem: pafs.FileSystem
    folder: str  # base of relative media paths; absolute, or a URI
    files: tuple[InputFile, ...]
    row_schema: RowSchema
    naming: RowNaming
    gone: tuple[InputFile, ...] = ()  # files that the input does not have any more
    left_out: LeftOut = field(default_factory=LeftOut)  # what lies beside the files and is not read

    @property
    def num_rows(self) -> int:
        """The number of rows of the whole input, done or not."""
        return sum(file.num_rows for file in self.files)

    @property
    def num_gone(self) -> int:
        """The rows of the output that the input had and does not have any more, as is known."""
        return sum(file.num_gone for file in (*self.files, *self.gone))

    def with_files(
        self, files: tuple[InputFile, ...], gone: tuple[InputFile, ...] = ()
    ) -> "Source":
        """Replace the files, whose rows may have other names."""
        return replace(self, files=files, gone=gone, naming=replace(self.naming, files=files))


def open_source(
    uri: str,
    columns: InputColumns,
    *,
    carry: Sequence[str] | None = None,
    keep_media: bool = False,
    extra: Sequence[pa.Field] = (),
    make_ids_unique: bool = False,
    has_digests: bool = False,
    output: str | None = None,
) -> Source:
    """Find the files of an input and merge their schemas.

    `uri` and `output` are as for `list_files`, `carry`, `keep_media`, `extra` and `has_digests` as
    for `check_input`. `make_ids_unique` renames null and repeated ids instead of refusing them.
    Folders that are named `column=value` give the rows of their files a column of text.

    Raises:
        ValueError: there is no such file, a file is not Parquet, there are no rows, or a column is
            missing, has a wrong type or differs too much between files; the message names the
            file or column.
    """
    listing = list_files(uri, output=output)
    filesystem, found = listing.filesystem, listing.files
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda item: _footer(filesystem, item[1]), found))
    schemas = [footer.schema.to_arrow_schema() for footer, _ in footers]
    own = {name for schema in schemas for name in schema.names}
    partitions = [_partitions(name, own) for name, _ in found]
    wanted = None if carry is None else {*carry, *columns.names, *columns.fields, *columns.lists}
    named = [
        (path, _with_partitions(schema, of_file))
        for (_, path), schema, of_file in zip(found, schemas, partitions, strict=True)
    ]
    schema = unify(named, wanted, required=columns.required)
    row_schema = check_input(
        schema,
        columns,
        carry=carry,
        keep_media=keep_media,
        extra=extra,
        partitions={name for of_file in partitions for name, _ in of_file},
        has_digests=has_digests,
    )
    files = tuple(
        InputFile(name, path, _row_group_rows(footer), digest, of_file)
        for (name, path), (footer, digest), of_file in zip(found, footers, partitions, strict=True)
    )
    kind = pa.string() if columns.id is None else row_schema.read.field(columns.id).type
    naming = RowNaming(filesystem, files, columns.id, make_ids_unique, kind)
    source = Source(
        filesystem, listing.folder, files, row_schema, naming, left_out=listing.left_out
    )
    if source.num_rows == 0:
        raise ValueError(f"{uri} has no rows")
    return source


def _footer(filesystem: pafs.FileSystem, path: str) -> tuple[pq.FileMetaData, str]:
    """Read the footer of a file, and digest its size, its footer and its end.

    The digest tells a changed file and stays when the file is copied. In a large file, it misses a
    change that leaves sizes, statistics and the last 64 KiB as they were.
    """
    try:
        with filesystem.open_input_file(path) as file:
            size = file.size()
            tail = file.read_at(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
            footer_bytes = 8 + int.from_bytes(
                tail[-8:-4], "little"
            )  # its length and a magic end it
            if len(tail) < footer_bytes <= size:
                tail = file.read_at(footer_bytes, size - footer_bytes)
        footer = pq.read_metadata(pa.BufferReader(tail))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is not a Parquet file that can be read: {error}") from error
    return footer, blake2b(b"%d:" % size + tail, digest_size=8).hexdigest()


def _partitions(name: str, own: Collection[str]) -> tuple[tuple[str, str | None], ...]:
    """Read the columns in the names of folders; columns that some file has itself come first."""
    found: dict[str, str | None] = {}
    for folder in name.split("/")[:-1]:
        column, is_partition, value = folder.partition("=")
        if is_partition and column and (column := unquote(column)) not in own:
            found[column] = None if value == _NULL_PARTITION else unquote(value)
    return tuple(found.items())


def _with_partitions(schema: pa.Schema, partitions: Sequence[tuple[str, str | None]]) -> pa.Schema:
    return pa.schema([*schema, *(pa.field(name, pa.string()) for name, _ in partitions)])


def _row_group_rows(footer: pq.FileMetaData) -> tuple[int, ...]:
    return tuple(footer.row_group(index).num_rows for index in range(footer.num_row_groups))
