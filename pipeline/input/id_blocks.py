"""Reads the ids of many rows as hashes, in threads and in bounded memory.

A row costs 8 bytes, however long its id is. Whether ids are unique is known at the end, from the
sorted hashes. Only if one is null or repeated are the ids read again, one row group after the
other, which names the rows or renames them.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.input.row_ids import InputFile, RepeatedIdError
from pipeline.input.source import Source
from pipeline.output.ledger import IdSet, hash_ids

Hashes = NDArray[np.uint64]

_NUM_READERS = 16  # threads; on object stores they mostly wait
_ROWS_PER_BLOCK = 1 << 20


@dataclass(frozen=True)
class RowGroup:
    """A row group of an input."""

    file: InputFile
    number: int  # in its file
    first_row: int  # number of its first row in its file
    first: int  # number of its first row in the input
    num_rows: int


@dataclass(frozen=True)
class IdBlock:
    """Row groups that follow each other in the input, about a million rows."""

    groups: Sequence[RowGroup]
    hashes: Hashes | None  # [rows] of their ids; None if nobody needs them
    is_renamed: NDArray[np.bool_] | None = None  # [rows]; None if no id was renamed

    @property
    def first(self) -> int:
        """The number of the first row in the input."""
        return self.groups[0].first

    @property
    def num_rows(self) -> int:
        """The rows of all row groups."""
        return sum(group.num_rows for group in self.groups)


def row_groups(source: Source, rows: range) -> Iterator[RowGroup]:
    """Yield the row groups that have some of `rows`, which are numbers of rows of the input."""
    first = 0
    for file in source.files:
        first_row = 0
        for number, num_rows in enumerate(file.row_group_rows):
            if first < rows.stop and first + num_rows > rows.start and num_rows:
                yield RowGroup(file, number, first_row, first, num_rows)
            first_row += num_rows
            first += num_rows


def id_blocks(source: Source, rows: range, *, needs_hashes: bool) -> Iterator[IdBlock]:
    """Yield blocks with all of `rows`; ids that are only numbers are made if hashes are needed.

    Row groups of which `rows` has a part are whole, so there may be rows before and after.

    Raises:
        RepeatedIdError: an id is null or repeated, which is known at the end.
        ValueError: a file cannot be read.
    """
    groups = list(row_groups(source, rows))
    is_chosen = source.naming.column is not None  # by the user, so perhaps not unique
    if not is_chosen and not needs_hashes:
        for block in _batched(groups, _ROWS_PER_BLOCK):
            yield IdBlock(block, None)
        return
    hashes = np.empty(sum(group.num_rows for group in groups), np.uint64)
    num_read = num_given = 0
    waiting: list[RowGroup] = []
    for piece, found in _hashed(source, _pieces(groups)):
        hashes[num_read : num_read + len(found)] = found
        num_read += len(found)
        waiting += piece
        if num_read - num_given >= _ROWS_PER_BLOCK or num_read == len(hashes):
            yield IdBlock(waiting, hashes[num_given:num_read])
            num_given, waiting = num_read, []
    if is_chosen:
        hashes.sort()
        if (hashes[1:] == hashes[:-1]).any():
            raise RepeatedIdError


def exact_blocks(source: Source, rows: range) -> Iterator[IdBlock]:
    """Yield a block for each row group, with ids compared in full and renamed if that is allowed.

    It reads all row groups of the files that have some of `rows`.

    Raises:
        ValueError: an id is null or repeated and may not be renamed, or a file cannot be read.
    """
    for group, ids, is_renamed in _exact_ids(source, rows):
        yield IdBlock((group,), hash_ids(ids), is_renamed)


def sorted_hashes(source: Source, which: Callable[[Hashes], NDArray[np.bool_]]) -> Hashes:
    """Return the hashes of all ids of an input that `which` chooses, sorted.

    Raises:
        ValueError: an id is null or repeated and may not be renamed, or a file cannot be read.
    """
    try:
        return _sorted_unique(source, which)
    except RepeatedIdError:
        blocks = exact_blocks(source, range(source.num_rows))
        every = (block.hashes for block in blocks if block.hashes is not None)
        return np.sort(np.concatenate([hashes[which(hashes)] for hashes in every]))


def _sorted_unique(source: Source, which: Callable[[Hashes], NDArray[np.bool_]]) -> Hashes:
    found = [np.empty(0, np.uint64)]
    for _, hashes in _hashed(source, _pieces(row_groups(source, range(source.num_rows)))):
        found.append(hashes[which(hashes)])
    chosen = np.concatenate(found)
    found.clear()
    chosen.sort()
    if source.naming.column is not None and (chosen[1:] == chosen[:-1]).any():
        raise RepeatedIdError
    return chosen


def ids_of_rows(source: Source) -> Iterator[pa.Array]:
    """Yield the ids of all rows of an input, some at a time, as the output has them.

    Raises:
        ValueError: an id is null or repeated and may not be renamed, or a file cannot be read.
    """
    if source.naming.make_unique:
        for _, ids, _ in _exact_ids(source, range(source.num_rows)):
            yield ids
    else:
        for file in source.files:
            yield from source.naming.batches_of_file(file, range(len(file.row_group_rows)))


def _exact_ids(
    source: Source, rows: range
) -> Iterator[tuple[RowGroup, pa.Array, NDArray[np.bool_]]]:
    """Yield the row groups with the ids of their rows, and which of these were renamed."""
    seen = IdSet()
    first = 0
    for file in source.files:
        first_row = 0
        if first < rows.stop and first + file.num_rows > rows.start:
            for number, raw_ids in enumerate(source.naming.ids_of_file(file)):
                ids, is_renamed = source.naming.unique_ids(file, first_row, raw_ids, seen)
                yield (
                    RowGroup(file, number, first_row, first + first_row, len(ids)),
                    ids,
                    is_renamed,
                )
                first_row += len(ids)
        first += file.num_rows


def _hashes(source: Source, groups: Sequence[RowGroup]) -> Hashes:
    """Hash the ids of neighbouring row groups of a file, a batch of rows at a time."""
    numbers = range(groups[0].number, groups[-1].number + 1)
    batches = source.naming.batches_of_file(groups[0].file, numbers)
    return np.concatenate([hash_ids(ids) for ids in batches])


def _pieces(groups: Iterable[RowGroup]) -> Iterator[list[RowGroup]]:
    """Yield what one thread reads: neighbours in one file, about a million rows."""
    for _, of_file in itertools.groupby(groups, key=lambda group: group.file.path):
        yield from _batched(of_file, _ROWS_PER_BLOCK)


def _batched(groups: Iterable[RowGroup], num_rows: int) -> Iterator[list[RowGroup]]:
    """Batch neighbours until a batch has at least so many rows."""
    batch: list[RowGroup] = []
    num_batched = 0
    for group in groups:
        batch.append(group)
        num_batched += group.num_rows
        if num_batched >= num_rows:
            yield batch
            batch, num_batched = [], 0
    if batch:
        yield batch


def _hashed(
    source: Source, pieces: Iterable[list[RowGroup]]
) -> Iterator[tuple[list[RowGroup], Hashes]]:
    """Hash the ids of pieces in threads, some ahead of what is asked for, and keep their order."""
    ahead: deque[tuple[list[RowGroup], Future[Hashes]]] = deque()
    with ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="ids") as pool:
        for piece in pieces:
            ahead.append((piece, pool.submit(_hashes, source, piece)))
            if len(ahead) > 2 * _NUM_READERS:
                first, hashes = ahead.popleft()
                yield first, hashes.result()
        while ahead:
            first, hashes = ahead.popleft()
            yield first, hashes.result()
