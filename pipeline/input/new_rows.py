"""Recognizes the rows of files that changed between runs, for `--new-rows`.

The output has a digest of what was read of each row. A row of a changed file that has the digest of
a row of the output is that row and keeps its name. Of equal rows the first keeps the first name.
All other rows are new and get the next numbers of the file, which no row has had.
"""

from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.input.plan import RowGroupSplit
from pipeline.input.reader import read_split
from pipeline.input.row_ids import InputFile
from pipeline.input.source import Source
from pipeline.output.store import Store
from pipeline.schema import DIGEST_FIELD

_ROWS_PER_BATCH = 1 << 16
# Of a row, as it names the row; the name of a file may have any characters.
_PLACE = pc.ExtractRegexOptions(r"(?s)^(?P<file>.*)#(?P<number>[0-9]{1,18})$")
_MAX_RUNS = 100_000  # of neighbouring rows that stay neighbours; each takes 20 bytes of a list


def recognize_rows(
    source: Source, store: Store, parts: Sequence[str], changed: Collection[str]
) -> Source:
    """Name the rows of changed files by what they hold; files that are gone keep their rows.

    It reads the changed files, media bytes included, and the digests in the output.

    Raises:
        ValueError: the output has no digests, a file has moved or cannot be read, or the order of
            its rows has nothing to do with the old one.
    """
    if DIGEST_FIELD.name not in source.row_schema.carried.names:
        raise ValueError(
            f"--new-rows cannot tell which rows are new: {store.uri} was begun by a version that "
            "stored no digests of rows; put the files back as they were, or use another --output"
        )
    _refuse_moved(source, changed)
    answered = _answered_rows(store, parts, changed)
    files = tuple(
        _recognized(source, file, answered[file.name]) if file.name in changed else file
        for file in source.files
    )
    gone = tuple(
        replace(file, path="", num_gone=sum(map(len, answered[file.name].values())))
        if file.name in changed
        else file
        for file in source.gone
    )
    return source.with_files(files, gone)


def _refuse_moved(source: Source, changed: Collection[str]) -> None:
    """Refuse to answer all rows of a file again because it has another name."""
    gone = {file.digest: file.name for file in source.gone if file.name in changed and file.digest}
    for file in source.files:
        if file.next_number is None and file.digest in gone:  # the output does not know it yet
            raise ValueError(
                f"{file.name} has the content of {gone[file.digest]}, which is gone; give it that "
                "name again, since its rows are named by it, or use another --output"
            )


def _answered_rows(
    store: Store, parts: Sequence[str], changed: Collection[str]
) -> dict[str, dict[str | None, list[int]]]:
    """Return the numbers of the rows of changed files in the output, by file and by digest."""
    numbers: dict[str, dict[str | None, list[int]]] = {name: defaultdict(list) for name in changed}
    names = pc.SetLookupOptions(pa.array(changed, pa.string()))
    for part in parts:
        filesystem, path = store.path_of(part)
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            columns = ["row_id", DIGEST_FIELD.name]
            for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH, columns=columns):
                places = pc.call_function("extract_regex", [batch["row_id"]], _PLACE)
                is_wanted = pc.call_function("is_in", [places.field("file")], names)
                digests = batch[DIGEST_FIELD.name].filter(is_wanted).to_pylist()
                for place, digest in zip(
                    places.filter(is_wanted).to_pylist(), digests, strict=True
                ):
                    numbers[place["file"]][digest].append(int(place["number"]))
    return numbers


def _recognized(
    source: Source, file: InputFile, answered: Mapping[str | None, list[int]]
) -> InputFile:
    """Number the rows of a file: those of the output as there, the others after all of them."""
    left = {digest: deque(sorted(numbers)) for digest, numbers in answered.items()}
    next_number = max(file.next_number or 0, *(max(each) + 1 for each in left.values()), 0)
    numbers = []
    for digest in _digests(source, file):
        if digest is not None and left.get(digest):
            numbers.append(left[digest].popleft())
        else:
            numbers.append(next_number)
            next_number += 1
    runs = _runs(np.array(numbers, np.int64))
    if len(runs) > _MAX_RUNS:
        raise ValueError(
            f"the rows of {file.path} have an order that has nothing to do with the old one; put "
            "the file back as it was, or use another --output"
        )
    num_gone = sum(map(len, left.values()))
    return replace(
        file,
        numbers=() if runs == ((0, 0),) else runs,
        next_number=next_number,
        num_gone=num_gone,
    )


def _digests(source: Source, file: InputFile) -> Iterator[str | None]:
    """Read a file and yield the digest of each row."""
    first_row = 0
    for row_group, num_rows in enumerate(file.row_group_rows):
        todo = np.packbits(np.ones(num_rows, np.bool_)).tobytes()
        split = RowGroupSplit(file, row_group, first_row, todo, num_rows)
        for rows in read_split(
            source.filesystem, source.row_schema, split, max_rows=_ROWS_PER_BATCH
        ):
            yield from rows[DIGEST_FIELD.name].to_pylist()
        first_row += num_rows


def _runs(numbers: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Return the first row and its number of each run of rows whose numbers follow each other."""
    if not len(numbers):
        return ()
    starts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1)]
    return tuple((int(start), int(numbers[start])) for start in starts)
