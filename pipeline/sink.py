"""Results -> committed parts.

Workers write small files into a staging directory (`stage`); only the driver makes rows visible, by
renaming a whole, synced part into the output (`Committer`). Whatever dies loses at most what was
not yet committed, and no row is ever committed twice.
"""

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.ledger import IdSet
from pipeline.schema import Status

STAGED_FIELDS = pa.schema(
    [
        ("path", pa.string()),
        ("rows", pa.int64()),
        ("errors", pa.int64()),
        ("tokens", pa.int64()),  # generated
    ]
)
_ROW_GROUP_BYTES = 64 << 20
_MAX_WAITING_BYTES = 256 << 20  # of staged files, which a commit reads into memory


def stage(rows: pa.Table, *, staging: str, schema: pa.Schema) -> pa.Table:
    """Write finished rows to a file of their own; return one row that says where (on workers).

    Args:
        rows: a table with at least the columns of `schema`.
        staging: the directory that the driver made for this run.
        schema: of the output.

    Raises:
        ValueError: the staging directory is not there: the output is not shared by the nodes, or
            the driver of this run is dead.
    """
    table = rows.select(schema.names).cast(schema)
    path = Path(staging) / f"{uuid.uuid4().hex}.parquet"
    try:
        _write(path, table)
    except FileNotFoundError:
        raise ValueError(
            f"{staging} does not exist on this node; --output must be a directory that all nodes "
            "of the cluster share"
        ) from None
    num_errors = table["status"].to_pylist().count(Status.ERROR)
    num_tokens = _total(table["num_generated_tokens"])
    return pa.table([[str(path)], [table.num_rows], [num_errors], [num_tokens]], STAGED_FIELDS)


class Committer:
    """Merges staged files into parts of bounded size and age; the only writer of parts.

    Args:
        output: the output directory; its lock is held.
        staging: the run's staging directory, on the same filesystem.
        run_id: part of the names of the parts.
        schema: of the output.
        committed: ids of the rows that the output holds; grows with each commit.
        rows_per_part: commit when at least so many rows (or 256 MiB) are staged.
        max_part_age_s: commit when the oldest staged row has waited so long.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        output: Path,
        staging: Path,
        run_id: str,
        schema: pa.Schema,
        committed: IdSet,
        *,
        rows_per_part: int,
        max_part_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output = output
        self._staging = staging
        self._run_id = run_id
        self._schema = schema
        self._committed = committed
        self._rows_per_part = rows_per_part
        self._max_part_age_s = max_part_age_s
        self._clock = clock
        self._waiting: list[Path] = []
        self._num_waiting = 0
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._num_parts = 0
        self.num_rows = 0  # committed by this object
        self.num_generated_tokens = 0
        self.num_prompt_tokens = 0
        self.statuses: Counter[str] = Counter()
        self.error_codes: Counter[str] = Counter()

    @property
    def num_rows_of_output(self) -> int:
        """Rows that the output holds, those of earlier runs included."""
        return len(self._committed)

    def add(self, path: str, num_rows: int) -> None:
        """Take a staged file, and commit what waits if it is enough or old."""
        if not self._waiting:
            self._waiting_since = self._clock()
        self._waiting.append(Path(path))
        self._num_waiting += num_rows
        self._waiting_bytes += _size_of_staged(Path(path))
        self.commit_if_due()

    def commit_if_due(self) -> None:
        """Commit what waits if it is enough, or has waited long enough."""
        if self._waiting and (
            self._num_waiting >= self._rows_per_part
            or self._waiting_bytes >= _MAX_WAITING_BYTES
            or self._clock() - self._waiting_since >= self._max_part_age_s
        ):
            self.commit()

    def commit(self) -> None:
        """Make all staged rows visible as parts; a row that is there already is dropped."""
        if not self._waiting:
            return
        rows = pa.concat_tables(
            [pq.read_table(path, schema=self._schema) for path in self._waiting]
        )
        rows = rows.filter(pa.array(self._committed.add(rows["row_id"].combine_chunks())))
        for start in range(0, rows.num_rows, self._rows_per_part):
            self._commit_part(rows.slice(start, self._rows_per_part))
        for path in self._waiting:
            path.unlink()
        self._waiting = []
        self._num_waiting = self._waiting_bytes = 0

    def _commit_part(self, rows: pa.Table) -> None:
        name = f"part-{self._run_id}-{self._num_parts:05d}.parquet"
        staged = self._staging / name
        _write(staged, rows)
        staged.rename(self._output / name)
        _sync_directory(self._output)
        self._num_parts += 1
        self.num_rows += rows.num_rows
        self.num_generated_tokens += _total(rows["num_generated_tokens"])
        self.num_prompt_tokens += _total(rows["num_prompt_tokens"])
        self.statuses.update(rows["status"].to_pylist())
        self.error_codes.update(rows["error_code"].drop_null().to_pylist())


def _total(counts: pa.ChunkedArray) -> int:
    return pc.call_function("sum", [counts]).as_py() or 0


def _size_of_staged(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise ValueError(
            f"the staged file {path} is not visible to the driver; --output must be a directory "
            "that all nodes of the cluster share"
        ) from None


def _write(path: Path, table: pa.Table) -> None:
    """Write a Parquet file that is on the disk when this returns."""
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    rows_per_group = max(1, _ROW_GROUP_BYTES // row_bytes)
    with path.open("xb") as file:
        pq.write_table(table, file, compression="zstd", row_group_size=rows_per_group)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
