"""Recognizes the rows of files that changed between runs, for `--new-rows`.

The output has a digest of what was read of each row. A row of a changed file that has the digest of
a row of the output is that row and keeps its name. Of equal rows the first keeps the first name.
All other rows are new and get the next numbers of the file, which no row has had.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.input.id_blocks import RowGroup
from pipeline.input.plan import split_of
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

    It reads the changed files, media bytes included, and the digests in the output. If rows are
    missing it reads the files too that are new, since the rows may have moved there.

    Raises:
        ValueError: the output has no digests, rows have moved to another file, a file cannot be
            read, or the order of its rows has nothing to do with the old one.
    """
    if DIGEST_FIELD.name not in source.row_schema.carried.names:
        raise ValueError(
            f"--new-rows cannot tell which rows are new: {store.uri} was begun by a version that "
            "stored no digests of rows; put the files back as they were, or use another --output"
        )
    answered = _answered_rows(store, parts, changed)
    files, lost = [], {}
    appeared: dict[str, Iterable[str | None]] = {}  # digests of rows by the file that has them now
    for file in source.files:
        if file.name in changed:
            numbered, appeared[file.name] = _recognized(source, file, answered[file.name])
            files.append(numbered)
        else:
            files.append(file)
            if file.next_number is None:  # the output does not know it
                appeared[file.name] = _digests(source, file)
    gone = [
        replace(file, path="", num_gone=sum(map(len, answered[file.name].values())))
        if file.name in changed
        else file
        for file in source.gone
    ]
    for name, left in answered.items():
        lost |= {digest: name for digest, numbers in left.items() if numbers}
    _refuse_moved(lost, appeared)
    return source.with_files(tuple(files), tuple(gone))


def _refuse_moved(
    lost: Mapping[str | None, str], appeared: Mapping[str, Iterable[str | None]]
) -> None:
    """Refuse to answer rows again because they are in another file, whose name they would get."""
    for name, digests in appeared.items() if lost else ():
        for digest in digests:
            if digest in lost:
                raise ValueError(
                    f"{name} has rows that were in {lost[digest]} when they were answered, and "
                    "rows are named by their files; put them back into that file, or use another "
                    "--output"
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
) -> tuple[InputFile, set[str | None]]:
    """Number the rows of a file: those of the output as there, the others after all of them.

    Takes the numbers that it gives out of `answered`. Returns the digests of the other rows too.
    """
    next_number = max(file.next_number or 0, *(max(each) + 1 for each in answered.values()), 0)
    for each in answered.values():
        each.sort(reverse=True)  # the first row gets the first number, which is at the end
    numbers, new = [], set()
    for digest in _digests(source, file):
        if left := answered.get(digest):
            numbers.append(left.pop())
        else:
            new.add(digest)
            numbers.append(next_number)
            next_number += 1
    runs = _runs(np.array(numbers, np.int64))
    if len(runs) > _MAX_RUNS:
        raise ValueError(
            f"the rows of {file.path} have an order that has nothing to do with the old one; put "
            "the file back as it was, or use another --output"
        )
    numbered = replace(
        file,
        numbers=() if runs == ((0, 0),) else runs,
        next_number=next_number,
        num_gone=sum(map(len, answered.values())),
    )
    return numbered, new


def _digests(source: Source, file: InputFile) -> Iterator[str | None]:
    """Read a file and yield the digest of each row."""
    first_row = 0
    for row_group, num_rows in enumerate(file.row_group_rows):
        group = RowGroup(file, row_group, first_row, first_row, num_rows)
        split = split_of(group, np.ones(num_rows, np.bool_))
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
