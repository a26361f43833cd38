"""Reads what an output holds: the ids of committed rows, and which of them may be tried again.

An output is one flat folder of part files, `part-*.parquet`, each committed and whole. Beside them
are `_recipe.json`, `_report.json`, `_starts.json`, `_files.json` and `_lock`; readers skip names
that begin with `_`.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pandas.util import hash_array

from pipeline.output.store import Store
from pipeline.schema import LATER_COLUMNS, ErrorCode

_NUM_READERS = 8  # threads
_IDS_PER_BATCH = 1 << 16
_NO_HASHES = np.empty(0, np.uint64)
NO_PART = -1  # in place of the index of a part file


class IdSet:
    """A set of row ids, kept as 64-bit hashes: 8 bytes a row, 0.8 GB for 100 million rows.

    The chance that any two of 100 million ids share a hash is 3e-4. So `RowNaming` compares ids
    that a user chose in full where their hashes are equal.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []  # each sorted; no hash is in two of them

    @classmethod
    def of(cls, hashes: NDArray[np.uint64]) -> "IdSet":
        """Make a set of many hashes at once; it takes their array, and sorts it in place."""
        hashes.sort()
        is_first = np.ones(len(hashes), np.bool_)
        np.not_equal(hashes[1:], hashes[:-1], out=is_first[1:])
        made = cls()
        if len(hashes):
            made._runs.append(hashes if is_first.all() else hashes[is_first])
        return made

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def contains_hashes(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell which of `hashes` are in the set."""
        found = np.zeros(len(hashes), dtype=np.bool_)
        if not self._runs:
            return found
        # Neighbours in this order are looked for in the same part of a run, which is in a cache of
        # the processor; two bytes are sorted by counting, so the order itself takes little.
        order = np.argsort((hashes >> np.uint64(48)).astype(np.uint16), kind="stable")
        near = hashes[order]
        for run in self._runs:
            place = np.searchsorted(run, near)
            found[order] |= run[np.minimum(place, len(run) - 1)] == near
        return found

    def left_in(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Keep the counts, by hash, of rows that are not in the set."""
        is_done = self.contains_hashes(np.array(list(counts), np.uint64))
        return {row: counts[row] for row in itertools.compress(counts, ~is_done)}

    def add(self, ids: pa.Array) -> NDArray[np.bool_]:
        """Add `ids` and tell which were new; of equal ids in one call only the first is new."""
        return self.add_hashes(hash_ids(ids))

    def add_hashes(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Add hashes and tell which were new; of equal ones only the first is new."""
        is_new = self.first_of_new(hashes)
        if is_new.any():
            self._runs.append(np.sort(hashes[is_new]))
            # Runs at least double in length, so each hash is sorted again at most log2(n) times.
            while len(self._runs) > 1 and len(self._runs[-1]) * 2 > len(self._runs[-2]):
                self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]))]
        return is_new

    def first_of_new(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell which hashes `add_hashes` would add."""
        distinct, first = np.unique(hashes, return_index=True)
        is_new = np.zeros(len(hashes), dtype=np.bool_)
        is_new[first[~self.contains_hashes(distinct)]] = True
        return is_new


@dataclass
class OutputIndex:
    """The committed rows of an output, by the hashes of their ids.

    A row is either `done` and stays, or it failed and may be replaced in its part file.
    """

    done: IdSet
    failed: NDArray[np.uint64]  # sorted
    failed_part: NDArray[np.int32]  # for each row of `failed`, the index of its part file
    parts: tuple[str, ...]  # names of the part files

    @classmethod
    def empty(cls) -> "OutputIndex":
        """Return the index of a new output."""
        return cls(IdSet(), np.empty(0, np.uint64), np.empty(0, np.int32), ())

    @property
    def num_rows(self) -> int:
        """The number of rows in the output."""
        return len(self.done) + len(self.failed)

    def part_of(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Find the part file of each row that may be replaced; `NO_PART` for all other rows."""
        part = np.full(len(hashes), NO_PART, np.int32)
        if len(self.failed):
            place = np.minimum(np.searchsorted(self.failed, hashes), len(self.failed) - 1)
            part = np.where(self.failed[place] == hashes, self.failed_part[place], part)
        return part

    def note_replaced(self, hashes: NDArray[np.uint64]) -> None:
        """Note that failed rows were replaced; they are done now."""
        stays = ~np.isin(self.failed, hashes)
        self.failed, self.failed_part = self.failed[stays], self.failed_part[stays]
        self.done.add_hashes(hashes)


def hash_ids(ids: pa.Array) -> NDArray[np.uint64]:
    """Hash ids to 64 bits, in the same way in every process and on every machine.

    Python's `hash` would not do: it has a random key in each process.
    """
    values = ids.to_numpy(zero_copy_only=False)
    return hash_array(values, categorize=False)  # pyright: ignore[reportCallIssue]


def is_part(name: str) -> bool:
    """Whether a file of an output is a part file, by its name."""
    return name.startswith("part-") and name.endswith(".parquet")


def committed_parts(store: Store) -> list[str]:
    """List the part files of an output, in the order in which they were first written."""
    return [name for name in store.names() if is_part(name)]


def schema_as_begun(store: Store, parts: Sequence[str], schema: pa.Schema) -> pa.Schema:
    """The schema for further parts: without the columns that came after the output was begun."""
    if not parts:
        return schema
    filesystem, path = store.path_of(parts[0])
    try:
        found = pq.read_schema(path, filesystem=filesystem)
    except (OSError, pa.ArrowException):
        return schema  # `read_index` says what is wrong with the part
    for name in LATER_COLUMNS:
        if name in schema.names and name not in found.names:
            schema = schema.remove(schema.get_field_index(name))
    return schema


def read_index(
    store: Store,
    parts: Sequence[str],
    schema: pa.Schema,
    *,
    retry: Collection[ErrorCode] = (),
) -> OutputIndex:
    """Read the ids of all committed rows, and error codes only if rows are to be tried again.

    Rows that failed with one of the codes `retry` may be replaced; all others are done.

    Raises:
        ValueError: a part file cannot be read or has other columns than `schema`.
    """
    codes = pa.array([str(code) for code in retry], pa.string())
    done, failed, failed_part = [_NO_HASHES], [_NO_HASHES], [np.empty(0, np.int32)]
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        found = pool.map(lambda name: _ids_of_part(store, name, schema, codes), parts)
        for number, (stays, again) in enumerate(found):
            done.append(stays)
            failed.append(again)
            failed_part.append(np.full(len(again), number, np.int32))
    hashes, part = np.concatenate(failed), np.concatenate(failed_part)
    order = np.argsort(hashes)
    all_done = np.concatenate(done)
    done.clear()
    return OutputIndex(IdSet.of(all_done), hashes[order], part[order], tuple(parts))


def ids_of_part(store: Store, name: str) -> Iterator[pa.Array]:
    """Yield the ids of a part file, some rows at a time.

    Raises:
        ValueError: the part file cannot be read.
    """
    with _opened(store, name) as file:
        for batch in file.iter_batches(batch_size=_IDS_PER_BATCH, columns=["row_id"]):
            yield batch["row_id"]


def num_rows_of_part(store: Store, name: str) -> int:
    """Return the number of rows of a part file, from its footer.

    Raises:
        ValueError: the part file cannot be read.
    """
    with _opened(store, name) as file:
        return file.metadata.num_rows


@contextmanager
def _opened(store: Store, name: str) -> Iterator[pq.ParquetFile]:
    filesystem, path = store.path_of(name)
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); delete it to caption its rows again"
        ) from error


def count_results(store: Store, parts: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Count the rows of an output by status, and the failed ones by error code."""
    totals: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for counts in pool.map(lambda name: _results_of_part(store, name), parts):
            for total, count in zip(totals, counts, strict=True):
                total.update(count)
    return dict(totals[0]), dict(totals[1])


def _results_of_part(store: Store, name: str) -> tuple[dict[str, int], dict[str, int]]:
    filesystem, path = store.path_of(name)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        table = file.read(columns=["status", "error_code"])
    return _counts(table["status"]), _counts(table["error_code"].drop_null())


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    return {each["values"]: each["counts"] for each in values.value_counts().to_pylist()}


def _ids_of_part(
    store: Store, name: str, schema: pa.Schema, codes: pa.Array
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hash the ids of the rows that are done, and of those that failed with one of `codes`."""
    done, again = [_NO_HASHES], [_NO_HASHES]
    with _opened(store, name) as file:
        if not file.schema_arrow.equals(schema):
            raise ValueError(
                f"{store.path_of(name)[1]} has other columns than this run writes; use another "
                "--output, or the --columns and --keep-media of the run that wrote it"
            )
        columns = ["row_id", "error_code"] if len(codes) else ["row_id"]
        for batch in file.iter_batches(batch_size=_IDS_PER_BATCH, columns=columns):
            hashes = hash_ids(batch["row_id"])
            is_again = np.zeros(len(hashes), np.bool_)
            if len(codes):
                found = pc.call_function("is_in", [batch["error_code"]], pc.SetLookupOptions(codes))
                is_again = found.to_numpy(zero_copy_only=False)
            done.append(hashes[~is_again])
            again.append(hashes[is_again])
    return np.concatenate(done), np.concatenate(again)
