"""The in-flight journal: which rows are being worked on, so that no row can end every run.

A row is in flight while a stage works on it, and not while it waits between stages or for its
commit. The journal writes it down before the work begins, so a run that is killed leaves its rows
in flight in `_starts.json`, each with the number of killed runs in which it was so. How many are
too many, `pipeline.output.poison` says; how the file is written, `pipeline.output.journal_file`.

Within a run the journal counts in the same way the processes that die by themselves, such as of too
little memory, since Ray starts such a process again without end.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pyarrow as pa

from pipeline.output.journal_file import JOURNAL, Change, JournalFile, replay, stream_journals
from pipeline.output.ledger import IdSet, hash_ids
from pipeline.output.store import Store

Stage = Literal["prepare", "generate"]


@dataclass
class InFlightJournal:
    """Keeps `_starts.json` up to date while a run lives; an actor on the driver's node.

    Its methods are coroutines, so that calls of many workers wait side by side in one actor.
    """

    store: Store
    counts_before: Mapping[int, int]  # in how many killed runs, by the hash of a row's id
    name: str = JOURNAL  # of its file

    def __post_init__(self) -> None:
        # Hashes of the rows in flight, and how many processes died with each in this run.
        self._in_flight: dict[Stage, set[int]] = {"prepare": set(), "generate": set()}
        self._deaths: dict[Stage, Counter[int]] = {"prepare": Counter(), "generate": Counter()}
        self._is_quarantine = self._is_closed = False
        # Rows that have begun or ended since the file was last written.
        self._touched: dict[Stage, set[int]] = {"prepare": set(), "generate": set()}
        self._file = JournalFile(self.store, self.counts_before, self.name)
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._num_changes = self._num_written = 0

    async def start(self, ids: pa.Array, stage: Stage) -> int:
        """Note that a stage begins to work on rows; when this returns, that survives a crash.

        Returns the most processes of the stage that died in this run while working on any one row.

        Raises:
            RuntimeError: the run has ended.
            OSError: the journal cannot be written.
        """
        hashes = set(hash_ids(ids).tolist())
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._is_quarantine or self._all_in_flight() <= hashes
            )
            # Rows that are in flight already belonged to a task that died; Ray tries it again.
            self._deaths[stage].update(self._in_flight[stage] & hashes)
            self._in_flight[stage] |= hashes
            self._touched[stage] |= hashes
        await self._write_changes()
        return max((self._deaths[stage][each] for each in hashes), default=0)

    async def end(self, ids: pa.Array, stage: Stage) -> None:
        """Note that a stage has finished rows; the file is updated with the next start."""
        hashes = hash_ids(ids).tolist()
        async with self._changed:
            self._in_flight[stage].difference_update(hashes)
            self._touched[stage].update(hashes)
            self._changed.notify_all()

    async def begin_quarantine(self) -> None:
        """From now on let `start` wait until no other rows are in flight."""
        async with self._changed:
            for stage, hashes in self._in_flight.items():
                self._touched[stage] |= hashes
                hashes.clear()  # all work before has ended, even if its `end` was lost
            self._is_quarantine = True

    async def close(self) -> None:
        """Write no more, so that the driver can write the last state of the file itself."""
        async with self._writing:
            self._is_closed = True
            self._file.close()

    async def _write_changes(self) -> None:
        """Write what has changed; calls that wait for the same write share it."""
        self._num_changes += 1
        own_change = self._num_changes
        async with self._writing:
            if self._is_closed:
                raise RuntimeError("the run has ended")
            if self._num_written < own_change:  # else an earlier call has written this change too
                newest = self._num_changes
                if self._file.can_append:
                    await _in_thread(partial(self._file.append, self._taken_changes()))
                else:
                    await _in_thread(partial(self._file.write, self._taken_state()))
                self._num_written = newest

    def _taken_changes(self) -> dict[str, Change]:
        """Take what has changed since the last write; if it fails, the next writes everything."""
        changes: dict[str, Change] = {}
        for stage, touched in self._touched.items():
            if touched:
                in_flight = self._in_flight[stage]
                changes[stage] = Change(started=touched & in_flight, ended=touched - in_flight)
                self._touched[stage] = set()
        return changes

    def _taken_state(self) -> dict[str, set[int]]:
        """Copy all rows in flight, since others may start while they are written."""
        self._touched = {"prepare": set(), "generate": set()}
        return {stage: set(rows) for stage, rows in self._in_flight.items()}

    def _all_in_flight(self) -> set[int]:
        return set().union(*self._in_flight.values())


async def _in_thread(write: Callable[[], None]) -> None:
    """Write in a thread; whoever is cancelled meanwhile waits, so that two never write at once."""
    writing = asyncio.ensure_future(asyncio.to_thread(write))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing])
        raise


def read_journal(store: Store, done: IdSet) -> dict[int, int]:
    """Read in how many killed runs each row was in flight, by the hash of its id.

    Rows that are done are left out.

    Raises:
        ValueError: the file is damaged.
    """
    counts: Counter[int] = Counter()
    for name in (JOURNAL, *stream_journals(store)):
        counts.update(_read_file(store, name))
    return done.left_in(counts)


def _read_file(store: Store, name: str) -> dict[int, int]:
    content = store.read(name)
    if content is None:
        return {}
    try:
        return replay(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{name} of {store.uri} is damaged ({error}); delete it, and rows that killed "
            "earlier runs are tried again like all others"
        ) from error


def write_journal(store: Store, counts: Mapping[int, int]) -> None:
    """Write the counts, of which the files of streams are a part; remove the file if none are."""
    if counts:
        JournalFile(store, counts).write({})
    else:
        store.delete(JOURNAL)
    for name in stream_journals(store):
        store.delete(name)
