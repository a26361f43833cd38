"""Results -> committed parts.

Only the driver writes to the output: rows come to it through Ray, wait in memory, and become a
part in one step of the `Store`. Workers that outlive a killed driver have nothing to write to.
Whatever dies loses at most what was not yet committed, and no row is ever committed twice.

A row that failed in an earlier run is replaced where it stands: its part is written again, whole,
under the same name.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.output.ledger import NO_PART, OutputIndex, hash_ids
from pipeline.output.store import Store

_ROW_GROUP_BYTES = 32 << 20
_MAX_WAITING_BYTES = 256 << 20
_LOOK_S = 1.0  # how often the age of waiting rows is looked at


class PartWriter:
    """Merges finished rows into parts of bounded size and age; the only writer of parts.

    Args:
        store: the output; its lock is held.
        run_id: part of the names of the parts.
        schema: of the output.
        held: what the output holds; grows with each commit.
        rows_per_part: commit when at least so many rows (or 256 MiB) wait.
        max_part_age_s: commit when the oldest waiting row has waited so long.
        started_before: by the hash of its id, how often a row was started by runs that died.
        check: raises where the output is not this driver's any more.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        schema: pa.Schema,
        held: OutputIndex,
        *,
        rows_per_part: int,
        max_part_age_s: float,
        started_before: Mapping[int, int] | None = None,
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._run_id = run_id
        self._schema = schema
        self._held = held
        self._rows_per_part = rows_per_part
        self._max_part_age_s = max_part_age_s
        self._started_before = started_before or {}
        self._check = check
        self._clock = clock
        self._lock = threading.RLock()
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._next_part = 1 + max((_number(name) for name in held.parts), default=-1)
        self.num_rows = 0  # committed by this object
        self.num_generated_tokens = 0
        self.num_prompt_tokens = 0
        self.statuses: Counter[str] = Counter()
        self.error_codes: Counter[str] = Counter()
        self.num_bytes = 0  # of the parts
        self._writing_s = 0.0
        self._writing_since: float | None = None

    @property
    def num_rows_of_output(self) -> int:
        """Rows that the output holds, those of earlier runs included."""
        return self._held.num_rows

    @property
    def writing_s(self) -> float:
        """Seconds spent on parts so far, in which nothing else comes out of the run."""
        since = self._writing_since
        return self._writing_s + (0.0 if since is None else time.monotonic() - since)

    def add(self, rows: pa.Table) -> None:
        """Take finished rows, and commit what waits if it is enough or old.

        Args:
            rows: a table with the columns of the output, `attempts` excepted.
        """
        with self._lock:
            if not self._waiting:
                self._waiting_since = self._clock()
            self._waiting.append(self._with_attempts(rows))
            self._num_waiting += rows.num_rows
            self._waiting_bytes += self._waiting[-1].nbytes
            self.commit_if_due()

    def commit_if_due(self) -> None:
        """Commit what waits if it is enough, or has waited long enough."""
        with self._lock:
            if self._waiting and (
                self._num_waiting >= self._rows_per_part
                or self._waiting_bytes >= _MAX_WAITING_BYTES
                or self._clock() - self._waiting_since >= self._max_part_age_s
            ):
                self.commit()

    @contextmanager
    def on_time(self) -> Iterator[None]:
        """Commit old rows even while nothing arrives, until the context ends."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_LOOK_S):
                # Rows keep waiting after a failure; the driver meets it at its own next commit.
                with suppress(OSError, pa.ArrowException):
                    self.commit_if_due()

        thread = threading.Thread(target=look, name="commit", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def commit(self) -> None:
        """Make all waiting rows visible; a row that is there already is dropped.

        Raises:
            OSError: a part could not be written; its rows, and those behind it, still wait.
        """
        with self._lock:
            if not self._waiting:
                return
            with self._writing():
                self._commit_waiting()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        began = self._writing_since = time.monotonic()
        try:
            yield
        finally:
            self._writing_since = None
            self._writing_s += time.monotonic() - began

    def _commit_waiting(self) -> None:
        rows = pa.concat_tables(self._waiting)
        hashes = hash_ids(rows["row_id"].combine_chunks())
        is_wanted = self._held.done.first_of_new(hashes)
        rows, hashes = rows.filter(pa.array(is_wanted)), hashes[is_wanted]
        part = self._held.part_of(hashes)
        self._commit_new(rows.filter(pa.array(part == NO_PART)), hashes[part == NO_PART])
        for index in np.unique(part[part != NO_PART]):
            mine = part == index
            self._replace(self._held.parts[index], rows.filter(pa.array(mine)), hashes[mine])
        self._waiting = []
        self._num_waiting = self._waiting_bytes = 0

    def _commit_new(self, rows: pa.Table, hashes: NDArray[np.uint64]) -> None:
        for start in range(0, rows.num_rows, self._rows_per_part):
            part = rows.slice(start, self._rows_per_part)
            self._write(f"part-{self._next_part:06d}-{self._run_id}.parquet", part)
            self._next_part += 1
            written = hashes[start : start + self._rows_per_part]
            self._held.done.add_hashes(written)
            self._count(part)

    def _replace(self, name: str, rows: pa.Table, hashes: NDArray[np.uint64]) -> None:
        """Write a part again with other results for some of its rows, which keep their places."""
        filesystem, path = self._store.path_of(name)
        old = pq.ParquetFile(path, filesystem=filesystem).read()
        place = pc.call_function("index_in", [old["row_id"]], pc.SetLookupOptions(rows["row_id"]))
        place = place.fill_null(-1).to_numpy()
        is_replaced = place >= 0
        tried = np.zeros(rows.num_rows, np.int32)
        tried[place[is_replaced]] = old["attempts"].to_numpy()[is_replaced]
        rows = _with_column(rows, "attempts", rows["attempts"].to_numpy() + tried)
        take = np.where(is_replaced, old.num_rows + place, np.arange(old.num_rows))
        self._write(name, pa.concat_tables([old, rows]).take(pa.array(take)))
        self._held.replaced(hashes)
        self._count(rows)

    def _write(self, name: str, rows: pa.Table) -> None:
        row_bytes = max(1, rows.nbytes // max(1, rows.num_rows))
        sink = pa.BufferOutputStream()
        pq.write_table(
            rows.replace_schema_metadata(self._schema.metadata),
            sink,
            compression="zstd",
            row_group_size=max(1, _ROW_GROUP_BYTES // row_bytes),
        )
        self._check()
        content = sink.getvalue()
        self._store.write(name, content)
        self.num_bytes += content.size

    def _with_attempts(self, rows: pa.Table) -> pa.Table:
        """The output's columns, with how often each row was started before, and once more now."""
        attempts = np.ones(rows.num_rows, np.int32)
        if self._started_before:
            hashes = hash_ids(rows["row_id"].combine_chunks())
            attempts += np.array([self._started_before.get(int(h), 0) for h in hashes], np.int32)
        rows = _with_column(rows, "attempts", attempts)
        return rows.select(self._schema.names).cast(self._schema)

    def unfinished(self, counts: Mapping[int, int]) -> dict[int, int]:
        """The counts, by hash of an id, of rows that the output does not hold."""
        is_done = self._held.done.contains_hashes(np.array(list(counts), np.uint64))
        return {
            key: count
            for (key, count), done in zip(counts.items(), is_done, strict=True)
            if not done
        }

    def _count(self, rows: pa.Table) -> None:
        self.num_rows += rows.num_rows
        self.num_generated_tokens += _total(rows["num_generated_tokens"])
        self.num_prompt_tokens += _total(rows["num_prompt_tokens"])
        self.statuses.update(rows["status"].to_pylist())
        self.error_codes.update(rows["error_code"].drop_null().to_pylist())


def _number(part: str) -> int:
    found = re.match(r"part-(\d+)", part)
    return int(found[1]) if found else -1


def _total(counts: pa.ChunkedArray) -> int:
    return pc.call_function("sum", [counts]).as_py() or 0


def _with_column(rows: pa.Table, name: str, values: NDArray[np.int32]) -> pa.Table:
    index = rows.column_names.index(name)
    return rows.set_column(index, rows.schema.field(index), pa.array(values, pa.int32()))
