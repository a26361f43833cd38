"""Write rejected rows as the input of another run (`write_rejected`)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.review_page.rows import Output
from jobs.review_page.source_decoder import open_source_of
from pipeline.input.plan import plan
from pipeline.input.reader import read_split
from pipeline.input.source import Source
from pipeline.output.ledger import IdSet, OutputIndex

_SLICE_ROWS = 64


def write_rejected(
    output: Output, row_ids: list[str], path: Path, input_uri: str | None
) -> Iterator[str]:
    """Write the rows of the input with these ids, all their columns, and yield what to do next.

    Relative paths of media become absolute, since the new input lies in another folder.

    Raises:
        ValueError: the input is unknown, cannot be read, or lacks a row.
    """
    if not row_ids:
        yield "no row was rejected, so there is no new input"
        return
    source = open_source_of(output, input_uri, every_column=True)
    folder = output.media_folder or source.folder
    media = source.row_schema.columns.video
    tables = [_with_whole_paths(rows, media, folder) for rows in _rows(source, row_ids)]
    found = pa.concat_tables(tables)
    if found.num_rows < len(row_ids):
        missing = set(row_ids) - set(found["row_id"].to_pylist())
        raise ValueError(f"the input no longer contains row {min(missing)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(found, path)
    yield f"{found.num_rows} rejected rows: {path.absolute()}"
    allow = "--allow-uri" if "://" in folder else "--allow-folder"
    yield (
        f"caption them again: the command of the job with --input {path} --id-column row_id "
        f"{allow} {folder} and another --output and --prompt"
    )


def _rows(source: Source, row_ids: list[str]) -> Iterator[pa.Table]:
    only = IdSet()
    only.add(pa.array(row_ids, pa.string()))
    for split in plan(source, OutputIndex.empty(), only=only).splits:
        yield from read_split(source.filesystem, source.row_schema, split, max_rows=_SLICE_ROWS)


def _with_whole_paths(rows: pa.Table, media: str, folder: str) -> pa.Table:
    place = rows.column_names.index(media)
    values = [_whole(value, folder) for value in rows[media].to_pylist()]
    return rows.set_column(place, media, pa.array(values, rows.schema.field(media).type))


def _whole(value: Any, folder: str) -> Any:
    """Return a media value whose path, if it is relative, begins with the folder."""
    if isinstance(value, str):
        is_whole = "://" in value or value.startswith("/")
        return value if is_whole else f"{folder.rstrip('/')}/{value}"
    if isinstance(value, list):
        return [_whole(each, folder) for each in value]
    if isinstance(value, Mapping) and value.get("bytes") is None:
        return {**value, "path": _whole(value.get("path"), folder)}
    return value
