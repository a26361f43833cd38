"""Which rows travel together from prepare to their part.

Ray moves some tens of batches a second, whatever is in them, so small rows share one. A batch waits
for its slowest row, so a row that is large, or whose media lie elsewhere and may be, is not held
together with others for that, unless there are very many. `sizing` says how many rows each has.

Only the rows decide, never the clock: a task that Ray runs again must give the same batches, or
rows would be lost.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pyarrow as pa

_SMALL_BYTES = 1 << 20  # of the media of all rows of a batch


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How many rows a batch has at most."""

    num_rows: int  # of any kind
    num_small_rows: int  # whose media are in the table, and together have a mebibyte at most

    def cut(self, rows: pa.Table, media_column: str) -> Iterator[pa.Table]:
        """The batches of a table, in order."""
        media = rows[media_column]
        start, num_bytes = 0, 0
        for index in range(rows.num_rows):
            size = _held_bytes(media, index)
            num_bytes += size
            is_small = num_bytes <= _SMALL_BYTES
            if index - start >= (self.num_small_rows if is_small else self.num_rows):
                yield rows.slice(start, index - start)
                start, num_bytes = index, size
        if start < rows.num_rows:
            yield rows.slice(start)


class Room:
    """Room for so many rows at a time; batches get it in the order in which they ask."""

    def __init__(self, num_rows: int) -> None:
        self._size = self._free = num_rows
        self._turn = asyncio.Lock()
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, num_rows: int) -> AsyncIterator[None]:
        """Have room for the rows of a batch; all of it, where they are more than there is."""
        num_rows = min(num_rows, self._size)
        async with self._turn, self._changed:
            await self._changed.wait_for(lambda: self._free >= num_rows)
            self._free -= num_rows
        try:
            yield
        finally:
            async with self._changed:
                self._free += num_rows
                self._changed.notify_all()


def _held_bytes(media: pa.ChunkedArray, index: int) -> int:
    """The size of a row's media; more than any limit where they are not in the table."""
    row = media.slice(index, 1)
    if row.nbytes > _SMALL_BYTES:
        return row.nbytes  # too large to look at for no reason
    return row.nbytes + _SMALL_BYTES * _is_elsewhere(row[0])


def _is_elsewhere(media: pa.Scalar) -> bool:
    """Whether any of a row's media is a path or URI, as `pipeline.fetch.media_access` reads them.

    What a path says is not looked at: it may be no text.
    """
    if not media.is_valid:
        return False
    if isinstance(media, pa.ListScalar | pa.LargeListScalar):
        return any(map(_is_elsewhere, media.values))
    if isinstance(media, pa.StructScalar):
        has = {name: name in media and media[name].is_valid for name in ("bytes", "path")}
        return has["path"] and not has["bytes"]
    return isinstance(media, pa.StringScalar | pa.LargeStringScalar)
