"""`_starts.json`: the file of the in-flight journal, one JSON object a line.

The first line says what held when the file was written: in how many killed runs rows were in
flight before this run, and which rows are in flight. Each further line says what has started and
ended since the line before. Every line ends with the CRC-32 of its other content.

* On a disk a start appends one line and syncs it, so it writes as much as has changed, however many
  rows are in flight. When more has been appended than stands in the first line, and at least a
  mebibyte, the file is written anew with one line (`Store.write`: a synced rename). So compaction
  at most doubles what is written, and a kill leaves either the old file or the new one.
* An object store cannot append. There the whole file is written each time, as one object that is
  there or not. Small objects of changes would have to be listed, told apart from those of earlier
  drivers, read one by one and deleted. They would save little: one PUT is under way at a time, all
  starts meanwhile share the next, and 262,144 rows in flight (512 engines with 512 each) are 3 MB.

Each stream of a fleet has a file of its own, `_starts-000.json` and so on, in which nothing was in
flight before: `_starts.json` has the counts of earlier runs. A row is in one stream only.

A killed driver leaves at most a torn last line, of starts that never returned; it is ignored. A
line with others behind it was synced, so if it does not read back, the file is damaged.

Versions before wrote one object of counts by row and no sum. Such a file is read too.
"""

import base64
import json
import os
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.output.store import LocalStore, Store

JOURNAL = "_starts.json"
_OF_STREAMS = "_starts-"  # how the names of the streams' journals begin
STAGES = ("prepare", "generate")
_MIN_APPENDED_BYTES = 1 << 20  # before the file is compacted


@dataclass(frozen=True)
class Change:
    """The rows, by hashes, that a stage has begun and finished."""

    started: Iterable[int] = ()
    ended: Iterable[int] = ()


@dataclass
class JournalFile:
    """Writes the file; only one thread at a time may call its methods.

    After an error, or before anything was written, `write` must come before `append`.
    """

    store: Store
    counts_before: Mapping[int, int]  # in how many killed runs, by the hash of a row's id
    name: str = JOURNAL

    def __post_init__(self) -> None:
        self._before = _packed_counts(self.counts_before)
        # Of a file on a disk. It stays open: under its name there may be a later driver's file.
        self._descriptor: int | None = None
        self._close: Callable[[], object] = _nothing
        self._whole_bytes = self._appended_bytes = 0  # of the first line, and since then

    @property
    def can_append(self) -> bool:
        """Whether the next changes should be appended, or else the whole be written."""
        limit = max(_MIN_APPENDED_BYTES, self._whole_bytes)
        return self._descriptor is not None and self._appended_bytes < limit

    def write(self, in_flight: Mapping[str, Iterable[int]]) -> None:
        """Replace the file by one line of all rows in flight, by stage.

        Raises:
            OSError: it cannot be written.
        """
        self.close()
        stages = {stage: {"started": _packed(rows)} for stage, rows in in_flight.items()}
        line = _line({"before": self._before, **stages})
        self.store.write(self.name, line)
        self._whole_bytes, self._appended_bytes = len(line), 0
        if isinstance(self.store, LocalStore):
            self._descriptor = self.store.open_end(self.name)
            self._close = weakref.finalize(self, os.close, self._descriptor)

    def append(self, changes: Mapping[str, Change]) -> None:
        """Append one line of changes, by stage, and sync it.

        Raises:
            OSError: it cannot be written; what is in the file may be torn, so it must be replaced.
        """
        assert self._descriptor is not None
        line = _line(
            {
                stage: {"started": _packed(each.started), "ended": _packed(each.ended)}
                for stage, each in changes.items()
            }
        )
        try:
            _write_all(self._descriptor, line)
            os.fsync(self._descriptor)
        except BaseException:
            self.close()
            raise
        self._appended_bytes += len(line)

    def close(self) -> None:
        """Let go of the file; `write` opens it again."""
        self._descriptor = None
        self._close()
        self._close = _nothing


def stream_journal(number: int) -> str:
    """Name the file of a stream of a fleet."""
    return f"{_OF_STREAMS}{number:03}.json"


def stream_journals(store: Store) -> list[str]:
    """List the files of streams that a killed run has left."""
    return [name for name in store.names() if name.startswith(_OF_STREAMS)]


def replay(content: bytes) -> dict[int, int]:
    """Return in how many killed runs each row was in flight, the one that wrote this included.

    Raises:
        ValueError: the content is damaged.
    """
    first, *others = content.split(b"\n")
    whole = json.loads(first)
    if "crc32" not in whole:  # of a version before
        return {int(row): int(count) for row, count in whole.items()}
    record = _checked(whole)
    counts = {
        row: int(count) for count, rows in record.pop("before").items() for row in _unpacked(rows)
    }
    in_flight: dict[str, set[int]] = {stage: set() for stage in STAGES}
    _apply(record, in_flight)
    synced = others[:-1]  # what follows the last newline is torn
    for number, line in enumerate(synced, 2):
        try:
            record = _checked(json.loads(line))
        except ValueError as error:
            if number == 1 + len(synced):
                break  # torn too: not all pages of the last write reached the disk
            raise ValueError(f"line {number}: {error}") from error
        _apply(record, in_flight)
    for row in set().union(*in_flight.values()):
        counts[row] = 1 + counts.get(row, 0)
    return counts


def _apply(record: Mapping[str, Mapping[str, str]], in_flight: Mapping[str, set[int]]) -> None:
    for stage, change in record.items():
        in_flight[stage].update(_unpacked(change["started"]))
        in_flight[stage].difference_update(_unpacked(change.get("ended", "")))


def _line(record: Mapping[str, Any]) -> bytes:
    checksum = zlib.crc32(json.dumps(record).encode())
    return json.dumps({**record, "crc32": checksum}).encode() + b"\n"


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    checksum = record.pop("crc32", None)
    if zlib.crc32(json.dumps(record).encode()) != checksum:
        raise ValueError("its checksum does not fit")
    return record


def _packed(rows: Iterable[int]) -> str:
    return base64.b64encode(np.fromiter(rows, "<u8").tobytes()).decode()


def _unpacked(text: str) -> list[int]:
    return np.frombuffer(base64.b64decode(text), "<u8").tolist()


def _packed_counts(counts: Mapping[int, int]) -> dict[str, str]:
    """Pack the rows of each count, which are few different ones."""
    rows_of: dict[int, list[int]] = {}
    for row, count in counts.items():
        rows_of.setdefault(count, []).append(row)
    return {str(count): _packed(rows) for count, rows in sorted(rows_of.items())}


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:  # a disk that is nearly full takes a part of it
        view = view[os.write(descriptor, view) :]


def _nothing() -> None:
    """Close nothing."""
