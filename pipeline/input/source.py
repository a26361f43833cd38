"""Opens an input: finds its files and merges their schemas. Only footers are read, no rows.

The id of a row is the value of the user's id column as a string, or else `<file>#<row number>`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Source:
    """The files of an input, and which columns to read of them."""

    filesystem: pafs.FileSystem
    folder: str  # base of relative media paths; absolute, or a URI
    files: tuple[InputFile, ...]
    row_schema: RowSchema
    naming: RowNaming
    left_out: LeftOut = field(default_factory=LeftOut)  # what lies beside the files and is not read

    @property
    def num_rows(self) -> int:
        """The number of rows of the whole input, done or not."""
        return sum(file.num_rows for file in self.files)

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
    files: list[InputFile] = []
    schemas: dict[bytes, tuple[str, pa.Schema]] = {}  # the different ones, each with its first file
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        contents = pool.map(lambda item: _read_footer(filesystem, item[1]), found)
        for (name, path), (schema, row_group_rows) in zip(found, contents, strict=True):
            files.append(InputFile(name, path, row_group_rows))
            schemas.setdefault(schema.serialize().to_pybytes(), (path, schema))
    wanted = None if carry is None else {*carry, *columns.names, *columns.fields, *columns.lists}
    schema = unify(list(schemas.values()), wanted, required=columns.required)
    row_schema = check_input(schema, columns, carry=carry, keep_media=keep_media, extra=extra)
    naming = RowNaming(filesystem, tuple(files), columns.id, make_ids_unique)
    source = Source(filesystem, listing.folder, naming.files, row_schema, naming, listing.left_out)
    if source.num_rows == 0:
        raise ValueError(f"{uri} has no rows")
    return source


def _read_footer(filesystem: pafs.FileSystem, path: str) -> tuple[pa.Schema, tuple[int, ...]]:
    """Return the columns of a file, and the rows of its row groups.

    The footer itself is not kept, since it describes every column of every row group.
    """
    try:
        footer = pq.read_metadata(path, filesystem=filesystem)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is not a Parquet file that can be read: {error}") from error
    rows = tuple(footer.row_group(index).num_rows for index in range(footer.num_row_groups))
    return footer.schema.to_arrow_schema().remove_metadata(), rows
