"""Writes parts behind the driver's loop, which takes the next results meanwhile.

One thread gives rows to the `PartWriter` in the order in which they came, so what is committed, in
which order and how often is as without it. The loop is ahead of it by `_MAX_BYTES` of rows at most;
then it waits. What the writer raises is raised in the loop, by the next `add` or at the end.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa

from pipeline.output.writer import PartWriter

_MAX_BYTES = 64 << 20


@contextmanager
def writing_behind(writer: PartWriter) -> Iterator["Behind"]:
    """Write in a thread during a `with`; after it the writer has all rows, committed or waiting.

    Raises:
        OSError: a part could not be written. Its rows and those after it wait in the writer.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="writer") as pool:  # its end waits for all rows
        behind = Behind(writer, pool)
        yield behind
        behind.finish()


class Behind:
    """Rows on their way to the writer; one thread may call the methods that change something."""

    def __init__(self, writer: PartWriter, pool: ThreadPoolExecutor) -> None:
        self._writer = writer
        self._pool = pool
        self._added: deque[tuple[Future[None], int]] = deque()  # and their bytes
        self._num_bytes = 0
        self._waited_s = 0.0
        self._waits_since: float | None = None

    @property
    def waited_s(self) -> float:
        """Seconds for which the loop has waited for the writer so far; any thread may ask."""
        since = self._waits_since
        return self._waited_s + (0.0 if since is None else time.monotonic() - since)

    def add(self, rows: pa.Table) -> None:
        """Leave finished rows to the thread; wait while too many are left.

        Raises:
            OSError: the thread could not write a part.
        """
        while self._added and (self._added[0][0].done() or self._num_bytes >= _MAX_BYTES):
            self._settle()
        self._added.append((self._pool.submit(self._writer.add, rows), rows.nbytes))
        self._num_bytes += rows.nbytes

    def finish(self) -> None:
        """Wait until the writer has all rows.

        Raises:
            OSError: the thread could not write a part.
        """
        while self._added:
            self._settle()

    def _settle(self) -> None:
        """Wait for the oldest rows, and raise what the writer raised at them."""
        written, num_bytes = self._added.popleft()
        self._num_bytes -= num_bytes
        began = self._waits_since = time.monotonic()
        try:
            written.result()
        finally:
            self._waits_since = None
            self._waited_s += time.monotonic() - began
