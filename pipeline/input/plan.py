"""Decides which rows of an input are still to do. Only the id column is read for it.

A row group of which all rows are done is not opened again, so done rows cost no media reads.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.input.id_blocks import IdBlock, RowGroup, exact_blocks, id_blocks
from pipeline.input.row_ids import RepeatedIdError
from pipeline.input.source import Source
from pipeline.output.ledger import NO_PART, IdSet, OutputIndex
from pipeline.output.poison import RUNS


@dataclass(frozen=True)
class RowGroupSplit:
    """The rows to do of one row group: the unit of reading."""

    file: str  # name of the file below the input's folder
    path: str  # of the file on the filesystem of the input
    row_group: int
    first_row: int  # number of the row group's first row in its file
    num_rows: int  # of the row group
    todo: bytes  # one bit a row of the row group, as np.packbits gives
    num_todo: int
    numbers: bytes = b""  # an int64 a row, where rows are not named by their places any more
    partitions: tuple[tuple[str, str | None], ...] = ()  # columns that the file's folders give
    renamed: bytes = b""  # one bit a row: its id was null or not unique; empty if none was


@dataclass(frozen=True)
class Plan:
    """What a run has to do."""

    splits: tuple[RowGroupSplit, ...]
    num_rows: int  # of the input or of a shard of it, within the limit
    num_done: int  # rows among these that the output holds and that stay as they are
    # Splits of one row each: rows that were in flight in several killed runs and are tried alone,
    quarantined: tuple[RowGroupSplit, ...] = ()
    # and rows that were in flight, at last alone, in so many that they are not tried again.
    poisoned: tuple[RowGroupSplit, ...] = ()

    @property
    def num_todo(self) -> int:
        """Rows that this run has to answer."""
        return self.num_rows - self.num_done


def plan(
    source: Source,
    index: OutputIndex,
    *,
    rows: range | None = None,
    limit: int | None = None,
    only: IdSet | None = None,
    in_flight_counts: Mapping[int, int] | None = None,
) -> Plan:
    """Decide which rows are still to do. Reads the id column if there is one, nothing else.

    `rows` are those of a shard, by their numbers in the input; None means all. `limit` ignores all
    but the first of them, and `only` all but the rows of a set. `in_flight_counts` tells in how
    many killed runs a row was in flight, by the hash of its id.

    Ids are compared with those of the same rows. If repeated ids may be renamed, also with those of
    all rows before, since the first row of an id keeps it.

    Raises:
        ValueError: an id is null or not unique, or the output has rows that the input lacks.
    """
    rows = range(source.num_rows) if rows is None else rows
    counts = in_flight_counts or {}
    read = range(rows.stop) if source.naming.is_renaming else rows

    def planned(blocks: Iterable[IdBlock]) -> Plan:
        builder = _PlanBuilder(index, rows, limit, source.num_gone, only, counts)
        for block in blocks:
            builder.add(block)
        return builder.finish()

    needs_hashes = bool(index.num_rows or counts) or only is not None
    try:
        return planned(id_blocks(source, read, needs_hashes=needs_hashes))
    except RepeatedIdError:
        return planned(exact_blocks(source, read))


def split_of(
    group: RowGroup, todo: NDArray[np.bool_], is_renamed: NDArray[np.bool_] | None = None
) -> RowGroupSplit:
    """Return the rows `todo` [rows of the group] of a row group; None renames no row."""
    numbers = b""
    if group.file.numbers:
        places = np.arange(group.first_row, group.first_row + group.num_rows)
        numbers = group.file.numbers_of(places).tobytes()
    return RowGroupSplit(
        group.file.name,
        group.file.path,
        group.number,
        group.first_row,
        group.num_rows,
        np.packbits(todo).tobytes(),
        int(np.count_nonzero(todo)),
        numbers,
        group.file.partitions,
        b"" if is_renamed is None or not is_renamed.any() else np.packbits(is_renamed).tobytes(),
    )


@dataclass
class _PlanBuilder:
    """Takes blocks of an input in their order and says of each row what becomes of it.

    of another shard, beyond the limit, or not in `only` --> ignored
    in the output --> done
    in flight in too many killed runs --> quarantined or poisoned, a split of its own
    else --> to do, in one split with the others of its row group
    """

    index: OutputIndex
    rows: range  # that this run is for, by their numbers in the input
    limit: int | None  # only so many of them, the first
    num_gone: int  # rows that the output may have and the input does not have any more
    only: IdSet | None
    in_flight_counts: Mapping[int, int]

    def __post_init__(self) -> None:
        too_many = [row for row, num in self.in_flight_counts.items() if RUNS.is_quarantined(num)]
        self._set_apart = np.array(too_many, np.uint64)
        self._wanted = self.rows if self.limit is None else self.rows[: self.limit]
        self._num_todo = self._num_in_output = 0
        self._splits: list[RowGroupSplit] = []
        self._quarantined: list[RowGroupSplit] = []
        self._poisoned: list[RowGroupSplit] = []

    def add(self, block: IdBlock) -> None:
        """Plan the rows of the next block."""
        todo = _within(block, self._wanted)
        if block.hashes is not None:
            todo &= self._is_left(block, block.hashes)
        self._num_todo += int(np.count_nonzero(todo))
        first = 0
        for group in block.groups:
            place = slice(first, first + group.num_rows)
            first = place.stop
            if not todo[place].any():
                continue
            is_renamed = None if block.is_renamed is None else block.is_renamed[place]
            hashes = None if block.hashes is None else block.hashes[place]
            self._add_group(group, todo[place], hashes, is_renamed)

    def _add_group(
        self,
        group: RowGroup,
        todo: NDArray[np.bool_],
        hashes: NDArray[np.uint64] | None,
        is_renamed: NDArray[np.bool_] | None,
    ) -> None:
        if hashes is not None and len(self._set_apart):
            is_set_apart = todo & np.isin(hashes, self._set_apart)
            for row in map(int, np.flatnonzero(is_set_apart)):
                is_poison = RUNS.is_poison(self.in_flight_counts[int(hashes[row])])
                rows = self._poisoned if is_poison else self._quarantined
                rows.append(split_of(group, np.arange(group.num_rows) == row, is_renamed))
            todo = todo & ~is_set_apart
        if todo.any():
            self._splits.append(split_of(group, todo, is_renamed))

    def _is_left(self, block: IdBlock, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which rows are not done, and wanted by `only`."""
        is_done = self.index.done.contains_hashes(hashes)
        is_failed = self.index.part_of(hashes) != NO_PART
        own = _within(block, self.rows)
        self._num_in_output += int(np.count_nonzero(own & (is_done | is_failed)))
        return ~is_done if self.only is None else ~is_done & self.only.contains_hashes(hashes)

    def finish(self) -> Plan:
        """Return the plan of all row groups; refuse an output with rows that the input lacks."""
        num_strange = self.index.num_rows - self._num_in_output
        if num_strange > self.num_gone:
            raise ValueError(
                f"the output holds {num_strange} rows that are not in this input; it "
                "belongs to another input, so use another --output"
            )
        return Plan(
            tuple(self._splits),
            len(self._wanted),
            len(self._wanted) - self._num_todo,
            tuple(self._quarantined),
            tuple(self._poisoned),
        )


def _within(block: IdBlock, rows: range) -> NDArray[np.bool_]:
    """Which rows of a block are among `rows`."""
    found = np.zeros(block.num_rows, np.bool_)
    found[max(0, rows.start - block.first) : max(0, rows.stop - block.first)] = True
    return found


def batched_splits(splits: Sequence[RowGroupSplit], num_rows: int) -> list[list[RowGroupSplit]]:
    """Batch neighbouring splits, so that a batch has at most `num_rows` rows to do.

    A split with more rows than that is a batch of its own.
    """
    batches: list[list[RowGroupSplit]] = []
    num_left = 0
    for split in splits:
        if not batches or split.num_todo > num_left:
            batches.append([])
            num_left = num_rows
        batches[-1].append(split)
        num_left -= split.num_todo
    return batches
