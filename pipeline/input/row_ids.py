"""Names the rows of an input: by a column of the user's, or as `<file>#<row>`.

Null and repeated ids are refused, or renamed if the user asks for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.column_types import cast
from pipeline.output.ledger import IdSet, hash_ids

_IDS_PER_BATCH = 1 << 16


class RepeatedIdError(ValueError):
    """Some id is null or repeated; which one, only a slower look at all ids tells."""


@dataclass(frozen=True)
class InputFile:
    """One Parquet file of the input."""

    name: str  # path below the input's folder; row ids that are made begin with it
    path: str  # on the filesystem of the input
    row_group_rows: tuple[int, ...]
    digest: str = ""  # of its size, its footer and its end; "" if that is not known
    # Columns that the names of its folders give, such as `lang` of `lang=de/a.parquet`.
    partitions: tuple[tuple[str, str | None], ...] = ()
    # Runs of rows that were given other numbers because the file changed: (first row, its number).
    numbers: tuple[tuple[int, int], ...] = ()
    next_number: int | None = None  # after all that its rows ever had; None: its number of rows
    num_gone: int = 0  # rows in the output that a former version of the file had, and this one not

    @property
    def num_rows(self) -> int:
        """The rows of the file."""
        return sum(self.row_group_rows)

    def numbers_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers that name rows, which are given by their places in the file."""
        if not self.numbers:
            return rows
        first, number = np.array(self.numbers, np.int64).T
        run = np.searchsorted(first, rows, side="right") - 1
        return number[run] + rows - first[run]


@dataclass(frozen=True)
class RowNaming:
    """How the rows of an input get their ids."""

    filesystem: pafs.FileSystem
    files: tuple[InputFile, ...]  # in an order in which the first row of an id keeps it
    column: str | None  # with the user's ids; None numbers the rows
    make_unique: bool = False  # rename null and repeated ids instead of refusing them
    # Of the ids in memory, which all files have in common; their texts depend on it.
    kind: pa.DataType = field(default_factory=pa.string)

    @property
    def is_renaming(self) -> bool:
        """Whether the user's ids are renamed where they are null or repeated."""
        return self.make_unique and self.column is not None

    def ids_of_file(self, file: InputFile) -> Iterator[pa.Array]:
        """Yield the ids of each row group of a file, in order, as the file has them.

        Raises:
            ValueError: the file cannot be read.
        """
        if self.column is None:
            first = 0
            for num_rows in file.row_group_rows:
                yield numbered(file.name, file.numbers_of(np.arange(first, first + num_rows)))
                first += num_rows
            return
        with self._opened(file) as parquet:
            for row_group in range(len(file.row_group_rows)):
                chunks = list(self._batches(parquet, [row_group]))
                yield pa.chunked_array(chunks, type=pa.string()).combine_chunks()

    def batches_of_file(self, file: InputFile, row_groups: range) -> Iterator[pa.Array]:
        """Yield the ids of neighbouring row groups of a file, in order, some rows at a time.

        Raises:
            RepeatedIdError: an id is null.
            ValueError: the file cannot be read.
        """
        if self.column is None:
            first = sum(file.row_group_rows[: row_groups.start])
            end = first + sum(file.row_group_rows[row_groups.start : row_groups.stop])
            for start in range(first, end, _IDS_PER_BATCH):
                places = np.arange(start, min(start + _IDS_PER_BATCH, end))
                yield numbered(file.name, file.numbers_of(places))
            return
        with self._opened(file) as parquet:
            for ids in self._batches(parquet, list(row_groups)):
                if ids.null_count:
                    raise RepeatedIdError
                yield ids

    @contextmanager
    def _opened(self, file: InputFile) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(file.path, filesystem=self.filesystem) as parquet:
                yield parquet
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"the ids of {file.path} cannot be read: {error}") from error

    def _batches(self, parquet: pq.ParquetFile, row_groups: list[int]) -> Iterator[pa.Array]:
        for batch in parquet.iter_batches(
            batch_size=_IDS_PER_BATCH, row_groups=row_groups, columns=[self.column]
        ):
            # By name: a column `a.b` is read along where `a` is asked for.
            ids = cast(batch.column(self.column), self.kind).cast(pa.string())
            ids.validate(full=True)  # pyarrow reads text that is not UTF-8 without an error
            yield ids

    def unique_ids(
        self, file: InputFile, first_row: int, ids: pa.Array, seen: IdSet
    ) -> tuple[pa.Array, NDArray[np.bool_]]:
        """Make sure that the ids of a row group are neither null nor in `seen`, and add them to it.

        `first_row` is the number of the row group's first row in the file, and `ids` are as the
        file has them. Returns the ids of the rows, and which of them were renamed.

        Raises:
            ValueError: an id is null or repeated and may not be renamed, or a new name is taken.
        """
        if self.column is None:
            return ids, np.zeros(len(ids), np.bool_)
        is_bad = ids.is_null().to_numpy(zero_copy_only=False).copy()
        is_bad[~is_bad] = ~seen.add(ids.drop_null())
        if not is_bad.any():
            return ids, is_bad
        if not self.make_unique:
            self._refuse(file, first_row, ids, is_bad)
        ids = renamed(ids, file.name, first_row + np.arange(len(ids)), is_bad)
        is_taken = np.zeros(len(ids), np.bool_)
        is_taken[is_bad] = ~seen.add(ids.filter(pa.array(is_bad)))
        if is_taken.any():
            self._refuse(file, first_row, ids, is_taken)
        return ids, is_bad

    def _refuse(
        self, file: InputFile, first_row: int, ids: pa.Array, is_bad: NDArray[np.bool_]
    ) -> NoReturn:
        index = int(np.flatnonzero(is_bad)[0])
        value, row = ids[index].as_py(), first_row + index
        remedy = "use --make-ids-unique, or leave out --id-column to number the rows"
        if value is None:
            raise ValueError(
                f"the id column {self.column!r} is null in {file.path}, row {row}; {remedy}"
            )
        # `seen` keeps hashes alone, so the other row is searched for in the files.
        for other, other_row, other_value in self._with_hash(hash_ids(ids.slice(index, 1))[0]):
            if (other, other_row) == (file, row):
                break
            if other_value == value:
                raise ValueError(
                    f"the id {value!r} appears twice in column {self.column!r}: in {other.path}, "
                    f"row {other_row}, and in {file.path}, row {row}; {remedy}"
                )
        raise ValueError(
            f"the id {value!r} in {file.path}, row {row} has the same 64-bit hash as another id, "
            f"so the two cannot be told apart; change it, {remedy}"
        )

    def _with_hash(self, wanted: np.uint64) -> Iterator[tuple[InputFile, int, str | None]]:
        """Yield all rows whose id has a given hash, for an error message; reads all ids again."""
        for file in self.files:
            first_row = 0
            for ids in self.ids_of_file(file):
                for index in np.flatnonzero(hash_ids(ids.fill_null("")) == wanted):
                    yield file, first_row + int(index), ids[int(index)].as_py()
                first_row += len(ids)


def numbered(file: str, numbers: NDArray[np.int64]) -> pa.Array:
    """Return the ids `<file>#<row>` of rows with these numbers in the file of this name."""
    text = pa.array(numbers).cast(pa.string())
    return pc.call_function("binary_join_element_wise", [pa.scalar(file), text, "#"])


def renamed(
    ids: pa.Array, file: str, numbers: NDArray[np.int64], is_bad: NDArray[np.bool_]
) -> pa.Array:
    """Replace the bad ids by `<id>@<file>#<row>`, or by `<file>#<row>` where they are null."""
    places = numbered(file, numbers)
    with_place = pc.call_function("binary_join_element_wise", [ids, places, pa.scalar("@")])
    unique = pc.call_function("coalesce", [with_place, places])  # a join with null is null
    return pc.call_function("if_else", [pa.array(is_bad), unique, ids])
