"""Opens an input: finds its files and merges their schemas. Only footers are read, no rows.

The id of a row is the value of the user's id column as a string, or else `<file>#<row number>`.
"""

from collections.abc import Collection, Iterator, Sequence
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
from pipeline.output.shards import InputIdentity
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

    @property
    def identity(self) -> InputIdentity:
        """What tells this input from others, by its listing."""
        return InputIdentity.of((file.name, file.num_rows) for file in self.files)


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
    files: list[InputFile] = []
    # The different ones, also by the columns of their folders, each with its first file.
    schemas: dict[tuple[bytes, tuple[str, ...]], tuple[str, pa.Schema]] = {}
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        contents = pool.map(lambda item: _read_footer(filesystem, item[1]), found)
        for (name, path), (schema, row_group_rows, digest) in zip(found, contents, strict=True):
            files.append(InputFile(name, path, row_group_rows, digest))
            key = (schema.serialize().to_pybytes(), _partition_names(name))
            schemas.setdefault(key, (path, schema))
    own = {name for _, schema in schemas.values() for name in schema.names}
    files = [replace(file, partitions=_partitions(file.name, own)) for file in files]
    named = [
        (path, _with_partitions(schema, [name for name in names if name not in own]))
        for (_, names), (path, schema) in schemas.items()
    ]
    wanted = None if carry is None else {*carry, *columns.names, *columns.fields, *columns.lists}
    row_schema = check_input(
        unify(named, wanted, required=columns.required),
        columns,
        carry=carry,
        keep_media=keep_media,
        extra=extra,
        partitions={name for file in files for name, _ in file.partitions},
        has_digests=has_digests,
    )
    kind = pa.string() if columns.id is None else row_schema.read.field(columns.id).type
    naming = RowNaming(filesystem, tuple(files), columns.id, make_ids_unique, kind)
    source = Source(
        filesystem, listing.folder, naming.files, row_schema, naming, left_out=listing.left_out
    )
    if source.num_rows == 0:
        raise ValueError(f"{uri} has no rows")
    return source


def _read_footer(filesystem: pafs.FileSystem, path: str) -> tuple[pa.Schema, tuple[int, ...], str]:
    """Return the columns of a file, the rows of its row groups, and a digest.

    The footer itself is not kept, since it describes every column of every row group. The digest,
    of the size, the footer and the end of the file, tells a changed file and stays when the file is
    copied. In a large file, it misses a change that leaves sizes, statistics and the last 64 KiB as
    they were.
    """
    try:
        with filesystem.open_input_file(path) as file:
            size = file.size()
            tail = file.read_at(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
            # A file ends with its footer, the length of the footer and four letters.
            footer_bytes = 8 + int.from_bytes(tail[-8:-4], "little")
            if len(tail) < footer_bytes <= size:
                tail = file.read_at(footer_bytes, size - footer_bytes)
        footer = pq.read_metadata(pa.BufferReader(tail))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is not a Parquet file that can be read: {error}") from error
    rows = tuple(footer.row_group(index).num_rows for index in range(footer.num_row_groups))
    digest = blake2b(b"%d:" % size + tail, digest_size=8).hexdigest()
    return footer.schema.to_arrow_schema().remove_metadata(), rows, digest


def _partitions(name: str, own: Collection[str]) -> tuple[tuple[str, str | None], ...]:
    """Read the columns in the names of folders; columns that some file has itself come first."""
    values = (
        (column, None if value == _NULL_PARTITION else unquote(value))
        for column, value in _folders(name)
        if column not in own
    )
    return tuple(dict(values).items())


def _partition_names(name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column for column, _ in _folders(name)))


def _folders(name: str) -> Iterator[tuple[str, str]]:
    """Yield column and value of the folders of a file that are named `column=value`."""
    for folder in name.split("/")[:-1]:
        column, is_partition, value = folder.partition("=")
        if is_partition and column:
            yield unquote(column), value


def _with_partitions(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    return pa.schema([*schema, *(pa.field(name, pa.string()) for name in names)])
