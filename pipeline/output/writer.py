"""Writes finished rows to the part files of an output.

Only the driver writes there: rows come to it from the stages, wait in memory, and become a part
file in one step of the `Store`. So workers that outlive a killed driver cannot write, a crash loses
at most the rows that were waiting, and no row is ever committed twice.

A row that failed in an earlier run is replaced in its place: its part file is written again, whole,
under the same name.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.output.caption_counts import CaptionCounts
from pipeline.output.ledger import NO_PART, OutputIndex, hash_ids
from pipeline.output.store import Store

_ROW_GROUP_BYTES = 32 << 20  # so that readers need not hold a whole part file in memory
_MAX_WAITING_BYTES = 256 << 20
_CHECK_AGE_S = 1.0  # how often the age of waiting rows is checked


@dataclass
class PartWriter:
    """Gathers finished rows and commits them as part files of bounded size and age.

    No other code writes part files. Methods may be called from several threads.
    """

    store: Store  # the output; its lock is held
    run_id: str  # a component of the names of the part files
    schema: pa.Schema  # of the output
    index: OutputIndex  # the rows that the output holds; grows with each commit
    rows_per_part: int  # commit when at least so many rows (or 256 MiB) wait
    max_part_age_s: float  # commit when the oldest waiting row has waited so long
    # In how many killed runs a row was in flight, by the hash of its id; added to `attempts`.
    in_flight_counts: Mapping[int, int] = field(default_factory=dict)
    # Called before each write; raises if another driver has taken the output over.
    check: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        # Reentrant, since `add` commits. A second thread is that of `on_time`.
        self._lock = threading.RLock()
        self._waiting: list[pa.Table] = []
        self._num_waiting = self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._next_part = 1 + max((_number(name) for name in self.index.parts), default=-1)
        # Of the rows that this object committed:
        self.num_rows = self.num_generated_tokens = self.num_prompt_tokens = 0
        self.statuses: Counter[str] = Counter()
        self.error_codes: Counter[str] = Counter()
        self.first_error: str | None = None  # id and message
        self.captions = CaptionCounts()
        self.num_bytes = 0  # of the part files that this object wrote

    def add(self, rows: pa.Table) -> None:
        """Take finished rows, fill in `attempts`, and commit if many or old rows wait."""
        with self._lock:
            if not self._waiting:
                self._waiting_since = self.clock()
            self._waiting.append(self._with_attempts(rows))
            self._num_waiting += rows.num_rows
            self._waiting_bytes += self._waiting[-1].nbytes
            self.commit_if_due()

    def commit_if_due(self) -> None:
        """Commit the waiting rows if they are many, large or old enough."""
        with self._lock:
            if self._waiting and (
                self._num_waiting >= self.rows_per_part
                or self._waiting_bytes >= _MAX_WAITING_BYTES
                or self.clock() - self._waiting_since >= self.max_part_age_s
            ):
                self.commit()

    @contextmanager
    def on_time(self) -> Iterator[None]:
        """Commit old rows even while no others arrive, until the context ends."""
        ended = threading.Event()

        def commit_old_rows() -> None:
            while not ended.wait(_CHECK_AGE_S):
                # After a failure the rows still wait; the driver's own next commit raises it.
                with suppress(OSError, pa.ArrowException):
                    self.commit_if_due()

        thread = threading.Thread(target=commit_old_rows, name="commit", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def commit(self) -> None:
        """Commit all waiting rows; a row that the output already holds is dropped.

        Raises:
            OSError: a part file could not be written. Its rows and those after it still wait.
        """
        with self._lock:
            if self._waiting:
                self._commit_waiting()

    def _commit_waiting(self) -> None:
        rows = pa.concat_tables(self._waiting)
        hashes = hash_ids(rows["row_id"].combine_chunks())
        # A row may come twice, since Ray runs tasks again; the first result counts.
        is_wanted = self.index.done.first_of_new(hashes)
        rows, hashes = rows.filter(pa.array(is_wanted)), hashes[is_wanted]
        part = self.index.part_of(hashes)
        self._commit_new(rows.filter(pa.array(part == NO_PART)), hashes[part == NO_PART])
        for number in np.unique(part[part != NO_PART]):
            mine = part == number
            self._replace(self.index.parts[number], rows.filter(pa.array(mine)), hashes[mine])
        self._waiting = []
        self._num_waiting = self._waiting_bytes = 0

    def _commit_new(self, rows: pa.Table, hashes: NDArray[np.uint64]) -> None:
        for start in range(0, rows.num_rows, self.rows_per_part):
            part = rows.slice(start, self.rows_per_part)
            self._write(f"part-{self._next_part:06d}-{self.run_id}.parquet", part)
            self._next_part += 1
            written = hashes[start : start + self.rows_per_part]
            self.index.done.add_hashes(written)
            self._count(part)

    def _replace(self, name: str, rows: pa.Table, hashes: NDArray[np.uint64]) -> None:
        """Write a part file again with other results for some rows, which keep their places."""
        filesystem, path = self.store.path_of(name)
        old = pq.ParquetFile(path, filesystem=filesystem).read()
        # For each old row the number of the row that replaces it, or -1.
        place = pc.call_function("index_in", [old["row_id"]], pc.SetLookupOptions(rows["row_id"]))
        place = place.fill_null(-1).to_numpy()
        is_replaced = place >= 0
        tried = np.zeros(rows.num_rows, np.int32)
        tried[place[is_replaced]] = old["attempts"].to_numpy()[is_replaced]
        rows = _with_column(rows, "attempts", rows["attempts"].to_numpy() + tried)
        # Take from the old rows followed by the new ones: the new row if there is one.
        take = np.where(is_replaced, old.num_rows + place, np.arange(old.num_rows))
        self._write(name, pa.concat_tables([old, rows]).take(pa.array(take)))
        self.index.note_replaced(hashes)
        self._count(rows)

    def _write(self, name: str, rows: pa.Table) -> None:
        row_bytes = max(1, rows.nbytes // max(1, rows.num_rows))
        buffer = pa.BufferOutputStream()
        pq.write_table(
            rows.replace_schema_metadata(self.schema.metadata),
            buffer,
            compression="zstd",
            row_group_size=max(1, _ROW_GROUP_BYTES // row_bytes),
        )
        self.check()
        content = buffer.getvalue()
        self.store.write(name, content)
        self.num_bytes += content.size

    def _with_attempts(self, rows: pa.Table) -> pa.Table:
        """Fill in `attempts` and cast to the output's schema; this run counts as one attempt."""
        attempts = np.ones(rows.num_rows, np.int32)
        if self.in_flight_counts:
            hashes = hash_ids(rows["row_id"].combine_chunks())
            before = [self.in_flight_counts.get(int(each), 0) for each in hashes]
            attempts += np.array(before, np.int32)
        rows = _with_column(rows, "attempts", attempts)
        return rows.select(self.schema.names).cast(self.schema)

    def _count(self, rows: pa.Table) -> None:
        self.num_rows += rows.num_rows
        self.num_generated_tokens += _total(rows["num_generated_tokens"])
        self.num_prompt_tokens += _total(rows["num_prompt_tokens"])
        self.statuses.update(rows["status"].to_pylist())
        self.error_codes.update(rows["error_code"].drop_null().to_pylist())
        self.captions.add(rows)
        if self.first_error is None:
            errors = zip(rows["row_id"].to_pylist(), rows["error"].to_pylist(), strict=True)
            self.first_error = next((f"{row}: {error}" for row, error in errors if error), None)


def _number(part: str) -> int:
    """Return the number in the name of a part file, or -1."""
    found = re.match(r"part-(\d+)", part)
    return int(found[1]) if found else -1


def _total(counts: pa.ChunkedArray) -> int:
    return pc.call_function("sum", [counts]).as_py() or 0


def _with_column(rows: pa.Table, name: str, values: NDArray[np.int32]) -> pa.Table:
    index = rows.column_names.index(name)
    return rows.set_column(index, rows.schema.field(index), pa.array(values, pa.int32()))
