"""Decides which rows of an input are still to do. Only the id column is read for it.

A row group of which all rows are done is not opened again, so done rows cost no media reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.input.row_ids import InputFile
from pipeline.input.source import Source
from pipeline.output.ledger import NO_PART, IdSet, OutputIndex, hash_ids
from pipeline.output.poison import RUNS


@dataclass(frozen=True)
class RowGroupSplit:
    """The rows to do of one row group: the unit of reading."""

    file: InputFile
    row_group: int
    first_row: int  # number of the row group's first row in its file
    todo: bytes  # one bit a row of the row group, as np.packbits gives
    num_todo: int
    renamed: bytes = b""  # one bit a row: its id was null or not unique; empty if none was


@dataclass(frozen=True)
class Plan:
    """What a run has to do."""

    splits: tuple[RowGroupSplit, ...]
    num_rows: int  # of the input, within the limit
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
    limit: int | None = None,
    only: IdSet | None = None,
    in_flight_counts: Mapping[int, int] | None = None,
) -> Plan:
    """Decide which rows are still to do. Reads the id column if there is one, nothing else.

    `limit` ignores all but the first rows of the input, and `only` all but the rows of a set.
    `in_flight_counts` tells in how many killed runs a row was in flight, by the hash of its id.

    Raises:
        ValueError: an id is null or not unique, or the output has rows that the input lacks.
    """
    num_rows = source.num_rows if limit is None else min(limit, source.num_rows)
    builder = _PlanBuilder(index, num_rows, source.num_gone, only, in_flight_counts or {})
    seen = IdSet()
    for file in source.files:
        first_row = 0
        for row_group, raw_ids in enumerate(source.naming.ids_of_file(file)):
            ids, is_renamed = source.naming.unique_ids(file, first_row, raw_ids, seen)
            builder.add(_RowGroup(file, row_group, first_row, is_renamed), hash_ids(ids))
            first_row += len(ids)
    return builder.finish()


@dataclass(frozen=True)
class _RowGroup:
    file: InputFile
    number: int
    first_row: int
    is_renamed: NDArray[np.bool_]

    def split(self, todo: NDArray[np.bool_]) -> RowGroupSplit:
        return RowGroupSplit(
            self.file,
            self.number,
            self.first_row,
            np.packbits(todo).tobytes(),
            int(todo.sum()),
            np.packbits(self.is_renamed).tobytes() if self.is_renamed.any() else b"",
        )

    def split_of_row(self, row: int) -> RowGroupSplit:
        return self.split(np.arange(len(self.is_renamed)) == row)


@dataclass
class _PlanBuilder:
    """Takes the row groups of an input in their order and says of each row what becomes of it.

    in the output --> done
    beyond the limit, or not in `only` --> ignored
    in flight in too many killed runs --> quarantined or poisoned, a split of its own
    else --> to do, in one split with the others of its row group
    """

    index: OutputIndex
    num_rows: int  # of the input, within the limit
    num_gone: int  # rows that the output may have and the input does not have any more
    only: IdSet | None
    in_flight_counts: Mapping[int, int]

    def __post_init__(self) -> None:
        too_many = [row for row, num in self.in_flight_counts.items() if RUNS.is_quarantined(num)]
        self._set_apart = np.array(too_many, np.uint64)
        self._num_before = 0  # rows of the row groups added so far
        self._num_todo = self._num_in_output = 0
        self._splits: list[RowGroupSplit] = []
        self._quarantined: list[RowGroupSplit] = []
        self._poisoned: list[RowGroupSplit] = []

    def add(self, row_group: _RowGroup, hashes: NDArray[np.uint64]) -> None:
        """Plan the rows of the next row group, whose ids have these hashes."""
        todo = self._todo(hashes)
        self._num_before += len(hashes)
        self._num_todo += int(todo.sum())
        is_set_apart = todo & np.isin(hashes, self._set_apart)
        for row in map(int, np.flatnonzero(is_set_apart)):
            is_poison = RUNS.is_poison(self.in_flight_counts[int(hashes[row])])
            rows = self._poisoned if is_poison else self._quarantined
            rows.append(row_group.split_of_row(row))
        todo &= ~is_set_apart
        if todo.any():
            self._splits.append(row_group.split(todo))

    def _todo(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which rows are not done, within the limit and wanted."""
        is_done = self.index.done.contains_hashes(hashes)
        is_failed = self.index.part_of(hashes) != NO_PART
        self._num_in_output += int(is_done.sum()) + int(is_failed.sum())
        todo = ~is_done if self.only is None else ~is_done & self.only.contains_hashes(hashes)
        todo[max(0, self.num_rows - self._num_before) :] = False
        return todo

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
            self.num_rows,
            self.num_rows - self._num_todo,
            tuple(self._quarantined),
            tuple(self._poisoned),
        )


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
