"""Which rows of an input are still to do. Reads the ids, nothing else.

A row group without rows to do is not opened again, so done rows cost no media read.
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
    first_row: int  # of the row group in its file
    todo: bytes  # one bit a row, as np.packbits gives
    num_todo: int
    renamed: bytes = b""  # one bit a row: its id was null or not unique; empty where all are good


@dataclass(frozen=True)
class Plan:
    """What a run has to do."""

    splits: tuple[RowGroupSplit, ...]
    num_rows: int  # of the input, after the limit
    num_done: int  # of these, the rows that the output already holds and that stay
    quarantined: tuple[
        RowGroupSplit, ...
    ] = ()  # of one row each, that were in flight when runs were killed
    poisoned: tuple[RowGroupSplit, ...] = ()  # of one row each, that were so alone too

    @property
    def num_todo(self) -> int:
        """Rows that this run shall answer."""
        return self.num_rows - self.num_done


def plan(
    source: Source,
    held: OutputIndex,
    *,
    limit: int | None = None,
    only: IdSet | None = None,
    starts: Mapping[int, int] | None = None,
) -> Plan:
    """Decide which rows are still to do. Reads the id column if there is one, nothing else.

    Args:
        source: the input.
        held: what the output already holds.
        limit: only the first `limit` rows of the input count; None means all.
        only: of what is to do, do only these rows; None means all.
        starts: how often killed runs had started a row, by the hash of its id.

    Raises:
        ValueError: an id is null or not unique, or the output has rows that the input has not.
    """
    seen = IdSet()
    pieces: list[RowGroupSplit] = []
    alone: list[RowGroupSplit] = []
    poisoned: list[RowGroupSplit] = []
    num_rows = source.num_rows if limit is None else min(limit, source.num_rows)
    num_matched = num_todo = position = 0
    for file in source.files:
        first_row = 0
        for row_group, raw in enumerate(source.naming.of_file(file)):
            ids, is_renamed = source.naming.good(file, first_row, raw, seen)
            hashes = hash_ids(ids)
            is_done = held.done.contains_hashes(hashes)
            num_matched += int(is_done.sum()) + int((held.part_of(hashes) != NO_PART).sum())
            todo = ~is_done if only is None else ~is_done & only.contains_hashes(hashes)
            todo[max(0, num_rows - position) :] = False
            position += len(todo)
            num_todo += int(todo.sum())
            for row, count in _suspects(hashes, todo, starts or {}):
                todo[row] = False
                single = _split(file, row_group, first_row, np.arange(len(todo)) == row, is_renamed)
                (poisoned if RUNS.is_poison(count) else alone).append(single)
            if todo.any():
                pieces.append(_split(file, row_group, first_row, todo, is_renamed))
            first_row += len(todo)
    if num_matched < held.num_rows:
        raise ValueError(
            f"the output holds {held.num_rows - num_matched} rows that are not in this input; it "
            "belongs to another input, so use another --output"
        )
    return Plan(tuple(pieces), num_rows, num_rows - num_todo, tuple(alone), tuple(poisoned))


def _suspects(
    hashes: NDArray[np.uint64], todo: NDArray[np.bool_], starts: Mapping[int, int]
) -> list[tuple[int, int]]:
    """The rows to do that killed runs had started too often, with how often."""
    wanted = [key for key, count in starts.items() if RUNS.is_quarantined(count)]
    rows = np.flatnonzero(todo & np.isin(hashes, np.array(wanted, np.uint64)))
    return [(int(row), starts[int(hashes[row])]) for row in rows]


def _split(
    file: InputFile,
    row_group: int,
    first_row: int,
    todo: NDArray[np.bool_],
    is_renamed: NDArray[np.bool_],
) -> RowGroupSplit:
    return RowGroupSplit(
        file,
        row_group,
        first_row,
        np.packbits(todo).tobytes(),
        int(todo.sum()),
        np.packbits(is_renamed).tobytes() if is_renamed.any() else b"",
    )


def batched_splits(pieces: Sequence[RowGroupSplit], num_rows: int) -> list[list[RowGroupSplit]]:
    """Runs of pieces with at most `num_rows` rows to do; one that has more is a run of its own."""
    runs: list[list[RowGroupSplit]] = []
    num_left = 0
    for piece in pieces:
        if not runs or piece.num_todo > num_left:
            runs.append([])
            num_left = num_rows
        runs[-1].append(piece)
        num_left -= piece.num_todo
    return runs
